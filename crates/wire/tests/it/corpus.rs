//! Replays the corpus of the fuzzers, so that the ordinary tests cover their findings.

use std::path::Path;

use portcullis_wire::{Connect, Limits, Scanner};

use crate::stream;

fn inputs(target: &str) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let entries = std::fs::read_dir(corpus.join(target)).unwrap();
    entries.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

#[test]
fn fuzzing_corpus_is_replayed() {
    let inputs = [inputs("connect"), inputs("scanner")].concat();
    for bytes in &inputs {
        let whole = Connect::decode(bytes, Limits::default());
        for cut in 0..bytes.len().min(512) {
            let part = Connect::decode(&bytes[..cut], Limits::default());
            assert!(part == Ok(None) || part == whole);
        }
        let _ = Scanner::new().scan(bytes, |_| ());
    }
    assert!(inputs.len() > 20, "the corpus is committed under fuzz/corpus");
}

#[test]
fn fuzzing_corpus_of_packets_is_replayed() {
    let inputs = inputs("packet");
    inputs.iter().for_each(|input| stream::check_input(input));
    assert!(inputs.len() > 20, "the corpus is committed under fuzz/corpus");
}
