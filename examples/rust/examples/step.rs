//! Steps through the numbers of its input, one sample at a time: `cargo run --example step MODEL < NUMBERS`.
use fastrnn::{Model, Stream, Weights};
use std::io::Read;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: step MODEL < NUMBERS")?;
    let model = Model::open(path, Weights::AsSaved)?;
    let mut stream = Stream::<f32>::new(&model, 1, 1)?;
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let numbers = text.split_whitespace().map(str::parse).collect::<Result<Vec<f32>, _>>()?;
    let mut y = vec![0.0; model.output_size()];
    for x in numbers.chunks(model.input_size()) {
        stream.step(x, &mut y)?;
        println!("{}", y.iter().map(f32::to_string).collect::<Vec<_>>().join(" "));
    }
    Ok(())
}
