# The library for C without Python: cmake -S . -B build -DFASTRNN_PYTHON=OFF && cmake --build build && cmake --install build
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

string(REGEX REPLACE "\\..*" "" major ${version})
set_target_properties(fastrnn PROPERTIES VERSION ${version} SOVERSION ${major})
add_library(fastrnn_static STATIC ${library})
target_compile_definitions(fastrnn_static PRIVATE ${has_isas} FASTRNN_VERSION="${version}")
target_link_libraries(fastrnn_static PRIVATE Threads::Threads)
set_target_properties(fastrnn_static PROPERTIES OUTPUT_NAME fastrnn)
foreach(one IN ITEMS fastrnn fastrnn_static)
  target_include_directories(${one} INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
endforeach()

install(TARGETS fastrnn fastrnn_static EXPORT fastrnn)
install(FILES csrc/api/fastrnn.h csrc/api/fastrnn.hpp DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
set(config ${CMAKE_INSTALL_LIBDIR}/cmake/fastrnn)
install(EXPORT fastrnn NAMESPACE fastrnn:: FILE fastrnn-targets.cmake DESTINATION ${config})
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/fastrnn-config.cmake
     "include(CMakeFindDependencyMacro)\nfind_dependency(Threads)\ninclude(\${CMAKE_CURRENT_LIST_DIR}/fastrnn-targets.cmake)\n")
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/fastrnn-config-version.cmake VERSION ${version} COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/fastrnn-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/fastrnn-config-version.cmake DESTINATION ${config})
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/fastrnn.pc
     "Name: fastrnn\nDescription: recurrent layers\nVersion: ${version}\n"
     "Cflags: -I${CMAKE_INSTALL_FULL_INCLUDEDIR}\nLibs: -L${CMAKE_INSTALL_FULL_LIBDIR} -lfastrnn\nLibs.private: -lstdc++ -lpthread -lm\n")
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/fastrnn.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
