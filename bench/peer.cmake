# Included by llama.cpp's own project (bench/peer), against what g++ 12 does to it on processors with AMX and AVX512-FP16:
# it drops most of the stores to the tile configuration that the AMX products load, so that the first one ends the process.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14)
  cmake_language(DEFER CALL set_source_files_properties
    ${CMAKE_CURRENT_SOURCE_DIR}/ggml/src/ggml-cpu/amx/mmq.cpp TARGET_DIRECTORY ggml-cpu
    PROPERTIES COMPILE_OPTIONS "-fno-tree-dse;-fno-dse")
  cmake_language(DEFER CALL target_compile_options ggml-cpu PRIVATE -mno-avx512fp16)
endif()
