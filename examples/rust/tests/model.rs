//! A model of one unit, h = relu(x/2 + h/4 + 1), whose results can be said beforehand.
use fastrnn::{Model, Stream, Weights};

fn model() -> Vec<u8> {
    let description = r#"{\"format\":1,\"layers\":[{\"name\":\"\",\"type\":\"RNN\",\"cell\":\"rnn_relu\",\"options\":{\"input_size\":1,\"hidden_size\":1,\"nonlinearity\":\"relu\"}}]}"#;
    let mut header = format!(r#"{{"__metadata__":{{"fastrnn":"{description}"}}"#);
    let numbers = [
        ("weight_ih_l0", "1,1", 0.5f32),
        ("weight_hh_l0", "1,1", 0.25),
        ("bias_ih_l0", "1", 1.0),
        ("bias_hh_l0", "1", 0.0),
    ];
    for (i, (name, shape, _)) in numbers.iter().enumerate() {
        header += &format!(r#","{name}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{},{}]}}"#, 4 * i, 4 * i + 4);
    }
    header += "}";
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend(numbers.iter().flat_map(|(_, _, value)| value.to_le_bytes()));
    bytes
}

#[test]
fn steps_and_runs() {
    let model = Model::from_bytes(&model(), Weights::AsSaved).unwrap();
    assert_eq!((model.input_size(), model.output_size(), model.takes_ids(), model.is_causal()), (1, 1, false, true));
    let mut stream = Stream::<f32>::new(&model, 1, 2).unwrap();
    let (mut y, mut rest) = ([0.0], [0.0; 3]);
    stream.step(&[2.0], &mut y).unwrap();
    assert_eq!(y, [2.0]);
    stream.run(&[-3.0, 1.0, 2.0], &mut rest).unwrap();
    assert_eq!(rest, [0.0, 1.5, 2.375]);
    assert_eq!(stream.state(), [2.375]);
    stream.set_state(&[4.0]).unwrap();
    stream.step(&[0.0], &mut y).unwrap();
    assert_eq!(y, [2.0]);
    stream.reset();
    stream.step(&[0.0], &mut y).unwrap();
    assert_eq!(y, [1.0]);
}

#[test]
fn threads_share_a_model() {
    let model = Model::from_bytes(&model(), Weights::Int8).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut stream = Stream::<f32>::new(&model, 1, 1).unwrap();
            scope.spawn(move || {
                let mut y = [0.0];
                stream.step(&[2.0], &mut y).unwrap();
                assert!((y[0] - 2.0f32).abs() < 1e-3);
            });
        }
    });
}

#[test]
fn refusals() {
    let words = |error: fastrnn::Error| error.to_string();
    assert!(words(Model::from_bytes(b"rubbish!", Weights::AsSaved).unwrap_err()).contains("safetensors"));
    assert!(words(Model::open("/nowhere", Weights::AsSaved).unwrap_err()).contains("/nowhere"));
    let model = Model::from_bytes(&model(), Weights::AsSaved).unwrap();
    assert!(words(Stream::<f64>::new(&model, 1, 1).unwrap_err()).contains("f32"));
    assert!(words(Stream::<f32>::new(&model, 0, 1).unwrap_err()).contains("must be positive"));
    let mut stream = Stream::<f32>::new(&model, 2, 1).unwrap();
    assert!(words(stream.step(&[1.0], &mut [0.0]).unwrap_err()).contains("one time step has 2 and 2"));
    assert!(words(stream.step(&[0.0; 4], &mut [0.0; 4]).unwrap_err()).contains("do not fit"));
    assert!(words(stream.run_ids(&[1, 2], &mut [0.0; 2]).unwrap_err()).contains("takes numbers"));
    assert!(words(stream.set_state(&[0.0]).unwrap_err()).contains("2 elements"));
}
