use super::*;

fn corpus(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Result<Corpus>) {
    let dir = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for (name, contents) in files {
        paths.push(dir.path().join(name));
        std::fs::write(&paths[paths.len() - 1], contents).unwrap();
    }
    let corpus = Corpus::open(&paths, "text");
    (dir, corpus)
}

fn texts(corpus: &Corpus) -> Vec<(usize, u64, String)> {
    corpus.documents().map(|d| d.unwrap()).map(|d| (d.file, d.index, d.text)).collect()
}

#[test]
fn files_are_read_in_order_with_their_indices() {
    let jsonl = "\u{feff}{\"text\": \"one\"}\n\n{\"id\": 3, \"text\": \"two\"}";
    let (_dir, corpus) = corpus(&[("a.txt", b"A\n\nB\n"), ("b.jsonl", jsonl.as_bytes())]);
    let corpus = corpus.unwrap();
    let expected = [(0, 0, "A\n\nB\n".into()), (1, 0, "one".into()), (1, 1, "two".into())];
    assert_eq!(texts(&corpus), expected);
    assert_eq!(corpus.files()[0].blake3, blake3::hash(b"A\n\nB\n").to_hex().to_string());
}

#[test]
fn a_long_text_file_arrives_in_pieces_that_join_to_the_whole() {
    let lines = "a line with \u{e9} in it\n".repeat(40_000);
    let unbroken = "\u{2603}".repeat(200_000);
    let (_dir, corpus) = corpus(&[("a.txt", lines.as_bytes()), ("b.txt", unbroken.as_bytes())]);
    let pieces = texts(&corpus.unwrap());
    let whole = |file: usize| -> String { pieces.iter().filter(|p| p.0 == file).map(|p| p.2.as_str()).collect() };
    assert!(pieces.len() > 4 && pieces.iter().all(|p| p.1 == 0 && p.2.len() <= PIECE_BYTES));
    assert!(pieces.iter().filter(|p| p.0 == 0).all(|p| p.2.ends_with('\n')));
    assert!(whole(0) == lines && whole(1) == unbroken);
}

#[test]
fn bad_input_says_where_and_what() {
    let long = [b"ok\n".repeat(100_000).as_slice(), b"x\xff"].concat();
    let cases: [(&str, &[u8], &[&str]); 9] = [
        ("a.jsonl", b"{\"text\": \"a\"}\n{\"body\": \"b\", \"id\": 1}\n", &["line 2", "body, id", "--text-field"]),
        ("a.jsonl", b"{\"text\": 3}\n", &["line 1", "no string"]),
        ("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \n", &["line 2", "invalid JSON"]),
        ("a.jsonl", b"[1]\n", &["line 1", "no object"]),
        ("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n", &["line 2", "byte offset 24", "iconv"]),
        ("a.txt", &long, &["line 100001", "byte offset 300001"]),
        ("a.txt", b" \n", &["not empty"]),
        ("a.csv", b"x", &[".txt, .jsonl", "a.csv"]),
        ("a.parquet", b"PAR1 and no more", &["a.parquet", "parquet"]),
    ];
    for (name, contents, expected) in cases {
        let (_dir, corpus) = corpus(&[(name, contents)]);
        let error = match corpus {
            Err(error) => error,
            Ok(corpus) => corpus.documents().find_map(Result::err).unwrap(),
        };
        for part in expected {
            assert!(error.to_string().contains(part), "{name}: {part}: {error}");
        }
    }
    let missing = Corpus::open(&[PathBuf::from("no-such-file.txt")], "text").unwrap_err().to_string();
    assert!(missing.contains("no-such-file.txt"), "{missing}");
}

#[test]
fn nothing_follows_an_error() {
    let (_dir, corpus) = corpus(&[("a.jsonl", b"{\"text\": \"a\"}\n{}\n{\"text\": \"b\"}\n"), ("b.txt", b"b")]);
    let corpus = corpus.unwrap();
    let results: Vec<bool> = corpus.documents().map(|d| d.is_ok()).collect();
    assert_eq!(results, [true, false]);
}
