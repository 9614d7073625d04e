//! Recurrent layers that `fastrnn.save` wrote, from Rust.
//!
//! ```no_run
//! use fastrnn::{Model, Stream, Weights};
//! let model = Model::open("amp.safetensors", Weights::AsSaved)?;
//! let mut stream = Stream::<f32>::new(&model, 1, 64)?;
//! let mut y = [0.0];
//! stream.step(&[0.5], &mut y)?; // for the audio thread: no memory is asked for, no lock taken, no system call made
//! # Ok::<(), fastrnn::Error>(())
//! ```
mod raw;

use std::ffi::CStr;
use std::fmt;
use std::marker::PhantomData;
use std::os::raw::{c_int, c_void};
use std::ptr;

/// What the library refused: its status, and in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub status: i32,
    pub message: String,
}
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for Error {}

fn refused(message: String) -> Error {
    Error { status: raw::BAD_ARGUMENT, message }
}
fn check(status: c_int) -> Result<(), Error> {
    if status == raw::OK {
        return Ok(());
    }
    // never null, and valid until this thread's next call
    let message = unsafe { CStr::from_ptr(raw::fastrnn_message()) }.to_string_lossy().into_owned();
    Err(Error { status, message })
}

/// What the weights of recurrent layers are kept as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    AsSaved = 0,
    Bfloat16 = 1,
    Int8 = 2,
}

/// A model, which any number of threads may use.
#[derive(Debug)]
pub struct Model {
    handle: *mut raw::Model,
}
// it never changes once it is open
unsafe impl Send for Model {}
unsafe impl Sync for Model {}

impl Model {
    pub fn open(path: impl AsRef<std::path::Path>, weights: Weights) -> Result<Self, Error> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|error| refused(format!("{}: {error}", path.display())))?;
        Self::from_bytes(&bytes, weights)
    }
    pub fn from_bytes(bytes: &[u8], weights: Weights) -> Result<Self, Error> {
        let found = unsafe { raw::fastrnn_abi_version() };
        if found != raw::ABI_VERSION {
            let message = format!("these bindings are of version {}, the library of {found}", raw::ABI_VERSION);
            return Err(Error { status: raw::UNSUPPORTED, message });
        }
        let options = raw::Options { ih: weights as c_int, hh: weights as c_int };
        let mut handle = ptr::null_mut();
        check(unsafe { raw::fastrnn_open(bytes.as_ptr().cast(), bytes.len(), &options, &mut handle) })?;
        Ok(Self { handle })
    }
    pub fn input_size(&self) -> usize {
        unsafe { raw::fastrnn_input_size(self.handle) as usize }
    }
    pub fn output_size(&self) -> usize {
        unsafe { raw::fastrnn_output_size(self.handle) as usize }
    }
    /// Whether inputs are token ids, of which there are `input_size()`.
    pub fn takes_ids(&self) -> bool {
        unsafe { raw::fastrnn_takes_ids(self.handle) != 0 }
    }
    pub fn is_causal(&self) -> bool {
        unsafe { raw::fastrnn_is_causal(self.handle) != 0 }
    }
}
impl Drop for Model {
    fn drop(&mut self) {
        unsafe { raw::fastrnn_close(self.handle) }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}
/// What a model computes with: f32 or f64.
pub trait Real: sealed::Sealed + Copy {
    const DTYPE: i32;
}
impl Real for f32 {
    const DTYPE: i32 = 0;
}
impl Real for f64 {
    const DTYPE: i32 = 1;
}

/// One state of a model, with the memory that it works in; one thread at a time, whichever.
#[derive(Debug)]
pub struct Stream<'model, R: Real> {
    model: &'model Model,
    handle: *mut raw::Stream,
    batch: usize,
    _memory: Box<[u8]>, // where the stream lies; a box does not move what it holds
    _real: PhantomData<R>,
}
unsafe impl<R: Real> Send for Stream<'_, R> {}

impl<'model, R: Real> Stream<'model, R> {
    /// Of `batch` sequences; runs work through at most `steps` time steps at once.
    pub fn new(model: &'model Model, batch: usize, steps: usize) -> Result<Self, Error> {
        if unsafe { raw::fastrnn_model_dtype(model.handle) } != R::DTYPE {
            return Err(refused("the model computes with the other of f32 and f64".into()));
        }
        let sizes = (i64::try_from(batch).unwrap_or(0), i64::try_from(steps).unwrap_or(0)); // 0 is refused
        let bytes = unsafe { raw::fastrnn_stream_bytes(model.handle, sizes.0, sizes.1) };
        if bytes == 0 {
            check(raw::BAD_ARGUMENT)?;
        }
        let (mut memory, mut handle) = (vec![0u8; bytes].into_boxed_slice(), ptr::null_mut());
        let place: *mut c_void = memory.as_mut_ptr().cast();
        check(unsafe { raw::fastrnn_prepare(model.handle, sizes.0, sizes.1, place, bytes, &mut handle) })?;
        Ok(Self { model, handle, batch, _memory: memory, _real: PhantomData })
    }

    /// One time step: x (B,I), y (B,O).
    pub fn step(&mut self, x: &[R], y: &mut [R]) -> Result<(), Error> {
        self.check_sizes(false, x.len(), y.len(), Some(1))?;
        check(unsafe { raw::fastrnn_step(self.handle, x.as_ptr().cast(), y.as_mut_ptr().cast()) })
    }
    /// As many time steps as x holds: x (T,B,I), y (T,B,O).
    pub fn run(&mut self, x: &[R], y: &mut [R]) -> Result<(), Error> {
        let t = self.check_sizes(false, x.len(), y.len(), None)?;
        check(unsafe { raw::fastrnn_run(self.handle, x.as_ptr().cast(), t as i64, y.as_mut_ptr().cast()) })
    }
    /// The same for a model that takes ids: ids (T,B).
    pub fn run_ids(&mut self, ids: &[i64], y: &mut [R]) -> Result<(), Error> {
        let t = self.check_sizes(true, ids.len(), y.len(), None)?;
        check(unsafe { raw::fastrnn_run(self.handle, ids.as_ptr().cast(), t as i64, y.as_mut_ptr().cast()) })
    }
    pub fn reset(&mut self) {
        unsafe { raw::fastrnn_reset(self.handle) };
    }

    pub fn state(&self) -> Vec<R>
    where
        R: Default,
    {
        let mut state = vec![R::default(); self.state_size()];
        unsafe { raw::fastrnn_get_state(self.handle, state.as_mut_ptr().cast()) };
        state
    }
    pub fn set_state(&mut self, state: &[R]) -> Result<(), Error> {
        if state.len() != self.state_size() {
            return Err(refused(format!("the state has {} elements, not {}", self.state_size(), state.len())));
        }
        check(unsafe { raw::fastrnn_set_state(self.handle, state.as_ptr().cast()) })
    }
    pub fn state_size(&self) -> usize {
        unsafe { raw::fastrnn_state_size(self.handle) as usize }
    }

    /// The number of time steps.
    fn check_sizes(&self, ids: bool, x: usize, y: usize, wanted: Option<usize>) -> Result<usize, Error> {
        if ids != self.model.takes_ids() {
            return Err(refused(if ids { "the model takes numbers" } else { "the model takes ids" }.into()));
        }
        let inputs = self.batch * if ids { 1 } else { self.model.input_size() };
        let (outputs, t) = (self.batch * self.model.output_size(), x / inputs);
        if x != t * inputs || y != t * outputs || wanted.is_some_and(|wanted| t != wanted) {
            let message = format!("x of {x} and y of {y} do not fit: one time step has {inputs} and {outputs}");
            return Err(refused(message));
        }
        Ok(t)
    }
}
