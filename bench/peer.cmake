# Included by llama.cpp's own project (bench/peer). g++ 12 drops most of the stores to the tile configuration that its AMX
# products load, and the first product ends the process: that file alone is compiled without removal of dead stores.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14)
  cmake_language(DEFER CALL set_source_files_properties
    ${CMAKE_CURRENT_SOURCE_DIR}/ggml/src/ggml-cpu/amx/mmq.cpp TARGET_DIRECTORY ggml-cpu
    PROPERTIES COMPILE_OPTIONS "-fno-tree-dse;-fno-dse")
endif()
