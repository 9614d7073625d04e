//! The functions of fastrnn.h, written by hand.
use std::os::raw::{c_char, c_int, c_void};

pub const ABI_VERSION: c_int = 2;
pub const OK: c_int = 0;
pub const BAD_ARGUMENT: c_int = 1;
pub const UNSUPPORTED: c_int = 3;

#[repr(C)]
pub struct Model {
    _private: [u8; 0],
}
#[repr(C)]
pub struct Stream {
    _private: [u8; 0],
}
#[repr(C)]
pub struct Options {
    pub ih: c_int,
    pub hh: c_int,
}

extern "C" {
    pub fn fastrnn_abi_version() -> c_int;
    pub fn fastrnn_message() -> *const c_char;
    pub fn fastrnn_open(bytes: *const c_void, size: usize, options: *const Options, model: *mut *mut Model) -> c_int;
    pub fn fastrnn_close(model: *mut Model);
    pub fn fastrnn_model_dtype(model: *const Model) -> c_int;
    pub fn fastrnn_input_size(model: *const Model) -> i64;
    pub fn fastrnn_output_size(model: *const Model) -> i64;
    pub fn fastrnn_takes_ids(model: *const Model) -> c_int;
    pub fn fastrnn_is_causal(model: *const Model) -> c_int;
    pub fn fastrnn_stream_bytes(model: *const Model, batch: i64, steps: i64) -> usize;
    pub fn fastrnn_prepare(
        model: *const Model,
        batch: i64,
        steps: i64,
        memory: *mut c_void,
        bytes: usize,
        stream: *mut *mut Stream,
    ) -> c_int;
    pub fn fastrnn_step(stream: *mut Stream, x: *const c_void, y: *mut c_void) -> c_int;
    pub fn fastrnn_run(stream: *mut Stream, x: *const c_void, t: i64, y: *mut c_void) -> c_int;
    pub fn fastrnn_reset(stream: *mut Stream) -> c_int;
    pub fn fastrnn_state_size(stream: *const Stream) -> i64;
    pub fn fastrnn_get_state(stream: *const Stream, state: *mut c_void) -> c_int;
    pub fn fastrnn_set_state(stream: *mut Stream, state: *const c_void) -> c_int;
}
