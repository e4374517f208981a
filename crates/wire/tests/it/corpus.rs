//! Replays the corpus of the fuzzers, so that the ordinary tests cover their findings.

use std::path::Path;

use portcullis_wire::{Connect, Limits, Scanner};

#[test]
fn fuzzing_corpus_is_replayed() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let mut files = 0;
    for target in ["connect", "scanner"] {
        for entry in std::fs::read_dir(corpus.join(target)).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            let whole = Connect::decode(&bytes, Limits::default());
            for cut in 0..bytes.len().min(512) {
                let part = Connect::decode(&bytes[..cut], Limits::default());
                assert!(part == Ok(None) || part == whole);
            }
            let _ = Scanner::new().scan(&bytes, |_| ());
            files += 1;
        }
    }
    assert!(files > 20, "the corpus is committed under fuzz/corpus");
}
