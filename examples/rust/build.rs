//! Finds libfastrnn.so: where FASTRNN_LIBRARY says, or where the Python package has it.
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=FASTRNN_LIBRARY");
    let library = std::env::var("FASTRNN_LIBRARY").unwrap_or_else(|_| {
        let found = Command::new("python3").args(["-c", "import fastrnn; print(fastrnn.get_library())"]).output();
        match found {
            Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_string(),
            _ => panic!("set FASTRNN_LIBRARY to the path of libfastrnn.so, or install the Python package fastrnn"),
        }
    });
    let folder = Path::new(&library).parent().expect("FASTRNN_LIBRARY must be the path of a file").display();
    println!("cargo:rustc-link-search=native={folder}");
    println!("cargo:rustc-link-lib=dylib=fastrnn");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
}
