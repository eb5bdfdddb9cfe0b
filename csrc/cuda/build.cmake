# The CUDA kernels, as part of lth_fast_ops. Leaves LTH_FAST_CUDA_ARCHITECTURES (empty without kernels) and
# LTH_FAST_WHY_NO_CUDA for build_info.py.
#
# CMake's own CUDA support is not used: it wants a toolkit laid out as NVIDIA's installer does it, and nvcc may come from
# wheels, in folders of their own. Nothing here includes torch but the .cpp files, which the C++ compiler takes; so nvcc
# needs a few seconds per kernel, and its objects depend on no version of torch.
set(LTH_FAST_CUDA_ARCHITECTURES "")
set(LTH_FAST_WHY_NO_CUDA "")

# ---- whether ----
if(NOT LTH_FAST_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "LTH_FAST_CUDA: expected AUTO, ON or OFF, got '${LTH_FAST_CUDA}'")
endif()
unset(LTH_FAST_NVCC CACHE)  # look again each time: the folders may have changed
if(LTH_FAST_CUDA STREQUAL "OFF")
  set(LTH_FAST_WHY_NO_CUDA "LTH_FAST_CUDA was OFF when it was built")
elseif(NOT LTH_FAST_TORCH_CUDA)
  set(LTH_FAST_WHY_NO_CUDA "it was built for a torch without CUDA")
elseif(LTH_FAST_CUDA STREQUAL "AUTO" AND NOT LTH_FAST_GPU_VISIBLE)
  set(LTH_FAST_WHY_NO_CUDA "no GPU was visible when it was built")
else()
  find_program(LTH_FAST_NVCC nvcc PATHS ENV CUDA_HOME ${LTH_FAST_CUDA_WHEELS} PATH_SUFFIXES bin NO_DEFAULT_PATH)
  find_program(LTH_FAST_NVCC nvcc PATHS /usr/local/cuda/bin)
  if(NOT LTH_FAST_NVCC)
    set(LTH_FAST_WHY_NO_CUDA "nvcc was found neither in CUDA_HOME nor beside torch nor in PATH when it was built")
  endif()
endif()
if(LTH_FAST_WHY_NO_CUDA)
  if(LTH_FAST_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LTH_FAST_CUDA is ON, but ${LTH_FAST_WHY_NO_CUDA}")
  endif()
  message(STATUS "No CUDA kernels: ${LTH_FAST_WHY_NO_CUDA}")
  return()
endif()

# ---- with what ----
execute_process(COMMAND ${LTH_FAST_NVCC} --version OUTPUT_VARIABLE nvcc_version COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCH "release ([0-9]+)[.][0-9]+" nvcc_release "${nvcc_version}")
set(nvcc_major ${CMAKE_MATCH_1})
if(NOT LTH_FAST_TORCH_CUDA MATCHES "^${nvcc_major}[.]")
  message(FATAL_ERROR "${LTH_FAST_NVCC} is of CUDA ${nvcc_release}, torch of CUDA ${LTH_FAST_TORCH_CUDA}: their major "
                      "versions must be the same (CUDA_HOME names another toolkit, LTH_FAST_CUDA=OFF does without)")
endif()
# What is called nvcc may be a script elsewhere: the compiler itself tells where its toolkit is, if asked to do nothing.
execute_process(COMMAND ${LTH_FAST_NVCC} -v __nothing OUTPUT_VARIABLE nvcc_says ERROR_VARIABLE nvcc_says)
string(REGEX MATCH "TOP=([^\r\n]*)" toolkit "${nvcc_says}")
get_filename_component(toolkit "${CMAKE_MATCH_1}" REALPATH)
# Behind the toolkit's own headers: some toolkits lack those of the libraries, the compiler's wheel has no others.
set(cuda_folders ${toolkit} $ENV{CUDA_HOME} ${LTH_FAST_CUDA_WHEELS})
set(include_flags "")
foreach(folder IN LISTS cuda_folders)
  list(APPEND include_flags -isystem ${folder}/include)
endforeach()
unset(LTH_FAST_CUDART CACHE)
find_file(LTH_FAST_CUDART NAMES libcudart.so.${nvcc_major} libcudart.so PATHS ${LTH_FAST_CUDA_WHEELS} ${toolkit}
          $ENV{CUDA_HOME} PATH_SUFFIXES lib lib64 targets/x86_64-linux/lib NO_DEFAULT_PATH REQUIRED)
message(STATUS "CUDA kernels: ${nvcc_release} (${LTH_FAST_NVCC}), ${LTH_FAST_CUDART}")

# ---- kernels: sm_80 and sm_90, and PTX that newer devices compile when it is loaded ----
set(LTH_FAST_CUDA_ARCHITECTURES "sm_80 sm_90 compute_90")
set(nvcc_flags -std=c++17 -O3 -gencode=arch=compute_80,code=sm_80 "-gencode=arch=compute_90,code=[sm_90,compute_90]"
               -Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra -I${CMAKE_CURRENT_SOURCE_DIR}/csrc ${include_flags})
if(LTH_FAST_WERROR)
  list(APPEND nvcc_flags -Werror=all-warnings)
endif()
find_package(Python REQUIRED COMPONENTS Interpreter)
file(GLOB cuda_headers CONFIGURE_DEPENDS csrc/cuda/kernels/*.h)
set(cuda_sources "")
foreach(op IN LISTS ops)
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/${op}.cpp)
    set(source ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/kernels/${op}.cu)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/cuda_${op}.o)
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/compile.py ${source} ${object} ${LTH_FAST_NVCC}
              ${nvcc_flags}
      DEPENDS ${source} ${cuda_headers} csrc/cuda/compile.py
      COMMENT "Compiling csrc/cuda/kernels/${op}.cu"
      VERBATIM)
    target_sources(lth_fast_ops PRIVATE ${object})
    list(APPEND cuda_sources csrc/cuda/${op}.cpp)
  endif()
endforeach()

# ---- the ops that call them: with include folders of their own, so that the others are not compiled anew ----
target_sources(lth_fast_ops PRIVATE ${cuda_sources})
set_source_files_properties(${cuda_sources} PROPERTIES COMPILE_OPTIONS "${include_flags}")
# Both come with torch and are in memory when the library is loaded; neither asks for a driver then.
target_link_libraries(lth_fast_ops PRIVATE c10_cuda ${LTH_FAST_CUDART})
