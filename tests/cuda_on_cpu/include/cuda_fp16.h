#pragma once

struct __half {
  __half() = default;
  explicit __half(float number) : held(static_cast<_Float16>(number)) {}
  explicit operator float() const { return static_cast<float>(held); }
  _Float16 held;
};
