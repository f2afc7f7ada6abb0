# The Python package (pip install .): the module _baton and, beside it, the program. Its libraries are built with
# position-independent code, so it has a build folder of its own.
if(BATON_PYTHON)
  set(CMAKE_POSITION_INDEPENDENT_CODE ON)
endif()

function(baton_python)
  if(NOT BATON_PYTHON)
    return()
  endif()
  find_package(Python 3.9 REQUIRED COMPONENTS Interpreter Development.Module)
  execute_process(COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir OUTPUT_STRIP_TRAILING_WHITESPACE
    OUTPUT_VARIABLE nanobind_ROOT RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "BATON_PYTHON needs the Python package nanobind: use `pip install .`")
  endif()
  find_package(nanobind CONFIG REQUIRED)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/python/*.cc)
  nanobind_add_module(_baton ${sources})
  target_include_directories(_baton PRIVATE ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(_baton PRIVATE baton_eval)
  target_compile_definitions(_baton PRIVATE BATON_VERSION="${PROJECT_VERSION}")
  nanobind_add_stub(_baton_stub MODULE _baton OUTPUT ${CMAKE_BINARY_DIR}/_baton.pyi PYTHON_PATH $<TARGET_FILE_DIR:_baton>
    DEPENDS _baton)
  install(FILES ${CMAKE_BINARY_DIR}/_baton.pyi DESTINATION baton COMPONENT python)
  install(TARGETS _baton LIBRARY DESTINATION baton COMPONENT python)
  install(TARGETS baton RUNTIME DESTINATION baton/bin COMPONENT python)
endfunction()
