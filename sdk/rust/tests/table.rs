//! Holds the scanner to the table that those of all SDKs are held to, and reads the table with it.

use millrace::json::{self, Edit, EditError};

fn text(case: &[u8], path: &str) -> Option<String> {
    json::get_str(case, path).map(|s| s.into_owned())
}

fn run(case: &[u8], op: &str, doc: &[u8]) -> Option<String> {
    let path = text(case, "path").unwrap_or_default();
    let utf8 = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    match op {
        "get" => {
            let v = json::get(doc, &path);
            assert!(v.is_none() || json::has(doc, &path));
            v.map(utf8)
        }
        "string" => json::get_str(doc, &path).map(|s| s.into_owned()),
        "int" => json::get_int(doc, &path).map(|n| n.to_string()),
        "bool" => json::get_bool(doc, &path).map(|b| b.to_string()),
        "object" => Some(json::is_object(doc).to_string()),
        "elements" => Some(json::elements(doc, &path).map(utf8).collect::<Vec<_>>().join("|")),
        "edit" => {
            let all: Vec<[String; 3]> =
                json::elements(case, "edits").map(|e| ["0", "1", "2"].map(|i| text(e, i).unwrap())).collect();
            let edits: Vec<Edit> = all
                .iter()
                .map(|[op, path, value]| match op.as_str() {
                    "set" => Edit::set(path, value),
                    "settext" => Edit::set_text(path, value),
                    "replace" => Edit::replace(path, value),
                    "replacetext" => Edit::replace_text(path, value),
                    "remove" => Edit::remove(path),
                    op => panic!("op {}", op),
                })
                .collect();
            let mut dst = b"kept".to_vec();
            let result = json::apply(&mut dst, doc, &edits);
            assert!(dst.starts_with(b"kept") && (result.is_ok() || dst.len() == 4));
            Some(match result {
                Ok(()) => utf8(&dst[4..]),
                Err(EditError::Json) => "!json".into(),
                Err(EditError::Path) => "!path".into(),
                Err(EditError::Edits) => "!edits".into(),
            })
        }
        op => panic!("op {}", op),
    }
}

#[test]
fn table() {
    let table = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/scan.json")).unwrap();
    let mut cases = 0;
    let mut wrong = Vec::new();
    for case in json::elements(&table, "") {
        let n = json::get_int(case, "nest").unwrap_or(0) as usize;
        let nest = |s: String| s.replace("@<", &"[".repeat(n)).replace("@>", &"]".repeat(n));
        let op = text(case, "op").unwrap();
        let got = run(case, &op, nest(text(case, "doc").unwrap()).as_bytes());
        if got != text(case, "want").map(nest) {
            wrong.push(format!("{}: {:.200?}", String::from_utf8_lossy(case), got));
        }
        cases += 1;
    }
    assert!(cases > 100, "{} cases", cases);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
