# The files of the matrix products, and the flags of those that are compiled for one instruction set. The choice among
# them is made at run time; no flag here may be given to other files. Included by the CMakeLists.txt beside it.
set(RIDGELINE_MATMUL_SOURCES
    activations.cpp
    cpu_features.cpp
    matmul.cpp
    matmul_avx2.cpp
    matmul_avx2_pairs.cpp
    matmul_avx2_prepare.cpp
    matmul_avx2_vnni.cpp
    matmul_avx512.cpp
    matmul_avx512_bf16.cpp
    matmul_avx512_direct.cpp
    matmul_avx512_int8.cpp
    matmul_avx512_prepare.cpp
    matmul_avx512_quad.cpp
    matmul_avx512_unpack.cpp
    matmul_neon.cpp
    matmul_neon_unpack.cpp
    matmul_portable.cpp
    pack.cpp
    roofline.cpp
    threads.cpp
    unpack_rows.cpp
)
list(TRANSFORM RIDGELINE_MATMUL_SOURCES PREPEND "${CMAKE_CURRENT_LIST_DIR}/")

set_source_files_properties(${RIDGELINE_MATMUL_SOURCES} PROPERTIES COMPILE_OPTIONS "-O3;-ffp-contract=off")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  # gcc 12 takes the undefined operand inside its own AVX-512 intrinsics for a mistake.
  set(avx512_flags -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c
                   -Wno-uninitialized -Wno-maybe-uninitialized)
  set_property(SOURCE "${CMAKE_CURRENT_LIST_DIR}/matmul_avx512.cpp" "${CMAKE_CURRENT_LIST_DIR}/matmul_avx512_int8.cpp"
                      "${CMAKE_CURRENT_LIST_DIR}/matmul_avx512_direct.cpp"
                      "${CMAKE_CURRENT_LIST_DIR}/matmul_avx512_prepare.cpp"
                      "${CMAKE_CURRENT_LIST_DIR}/matmul_avx512_quad.cpp"
                      "${CMAKE_CURRENT_LIST_DIR}/matmul_avx512_unpack.cpp"
               APPEND PROPERTY COMPILE_OPTIONS ${avx512_flags})
  set_property(SOURCE "${CMAKE_CURRENT_LIST_DIR}/matmul_avx512_bf16.cpp"
               APPEND PROPERTY COMPILE_OPTIONS ${avx512_flags} -mavx512bf16)
  set_property(SOURCE "${CMAKE_CURRENT_LIST_DIR}/matmul_avx2.cpp" "${CMAKE_CURRENT_LIST_DIR}/matmul_avx2_pairs.cpp"
                      "${CMAKE_CURRENT_LIST_DIR}/matmul_avx2_prepare.cpp"
                      "${CMAKE_CURRENT_LIST_DIR}/matmul_avx2_vnni.cpp"
               APPEND PROPERTY COMPILE_OPTIONS -mavx2 -mfma -mf16c)
endif()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64|ARM64")
  set_property(SOURCE "${CMAKE_CURRENT_LIST_DIR}/matmul_neon.cpp"
               APPEND PROPERTY COMPILE_OPTIONS -march=armv8.2-a+dotprod)
endif()
find_package(Threads REQUIRED)
set(RIDGELINE_MATMUL_LIBRARIES Threads::Threads)
