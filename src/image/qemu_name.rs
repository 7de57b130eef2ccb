//! Names of files as qemu writes them: `file:base.qcow2`, `json:{"driver": "qcow2", "file": {"filename": "base.qcow2"}}`.

use std::fmt::Display;
use std::path::Path;

use super::detect::is_local_protocol;
use crate::error::ReferenceProblem;
use crate::info::FileReference;
use crate::name::Name;
use crate::options::{Options, json};

/// The reference with a plain file name and the format that a description states, where the image states none.
pub(super) fn resolve(reference: &FileReference) -> Result<FileReference, ReferenceProblem> {
    let name = reference.name.as_bytes();
    let mut resolved = reference.clone();
    if let Some(description) = name.strip_prefix(b"json:") {
        let text = std::str::from_utf8(description).map_err(not_one_file)?;
        let mut options = Options::new();
        options.add_json(text).map_err(not_one_file)?;
        options.remove_runtime_options();
        (resolved.name, resolved.format) = local_file(options, reference.format.as_ref())?;
    } else {
        resolved.name = without_protocol(&reference.name);
    }
    Ok(resolved)
}

/// The file and the format of a description: nodes nested by the key `file`, the format on the outside. The format that the
/// image states, `outer`, replaces the outermost one, as in qemu.
fn local_file(mut options: Options, outer: Option<&Name>) -> Result<(Name, Option<Name>), ReferenceProblem> {
    let mut drivers = Vec::new();
    let mut node = String::new();
    let filename = loop {
        drivers.push(options.take(&format!("{node}driver")));
        match options.take(&format!("{node}filename")) {
            Some(filename) => break Name::from(filename),
            // The depth of the description is limited.
            None if node.len() < 5 * json::MAX_DEPTH => node.push_str("file."),
            None => {
                let driver = drivers.iter().flatten().next_back().map_or("", String::as_str);
                return Err(not_one_file(format!("driver '{driver}', no file name")));
            }
        }
    };
    // Each image tries all secrets that there are, so that it does not matter which of them is named.
    for key in ["encrypt.key-secret", "encrypt.format", "key-secret"] {
        options.take(key);
    }
    if let Some(key) = options.names().next() {
        return Err(not_one_file(format!("key '{key}'")));
    }
    // The innermost node is the file, if it has a driver of its own; a name without one can begin with a protocol.
    let explicit =
        drivers.last().is_some_and(|driver| driver.as_deref().is_some_and(|d| is_local_protocol(d.as_bytes())));
    let filename = if explicit { literal(&filename) } else { without_protocol(&filename) };
    let stated = drivers.first_mut().filter(|_| outer.is_some());
    if let (Some(first), Some(outer)) = (stated, outer) {
        *first = Some(outer.to_text().into_owned());
    }
    let is_raw = |driver: &str| driver == "raw" || is_local_protocol(driver.as_bytes());
    let mut formats = drivers.iter().flatten().filter(|driver| !is_raw(driver));
    let format = match (formats.next(), formats.next()) {
        (Some(format), Some(other)) => return Err(not_one_file(format!("driver '{format}' over '{other}'"))),
        (Some(format), None) => Some(Name::from(format.as_str())),
        (None, _) => drivers.first().and_then(Option::as_ref).map(|_| Name::from("raw")),
    };
    Ok((filename, format))
}

/// The name without the prefix of a local protocol. Other protocols stay, and are refused as no file names.
fn without_protocol(name: &Name) -> Name {
    let bytes = name.as_bytes();
    match bytes.iter().position(|byte| *byte == b':') {
        Some(colon) if bytes.get(..colon).is_some_and(is_local_protocol) => {
            literal(&Name::from(bytes.get(colon + 1..).unwrap_or_default()))
        }
        _ => name.clone(),
    }
}

/// A name in which a colon does not end a protocol.
fn literal(name: &Name) -> Name {
    if name.is_file_name() || name.as_bytes().is_empty() || name.as_path().is_some_and(Path::is_absolute) {
        return name.clone();
    }
    Name::from([b"./", name.as_bytes()].concat().as_slice())
}

fn not_one_file(reason: impl Display) -> ReferenceProblem {
    ReferenceProblem::NotOneFile(Name::from(reason.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(name: &str, format: Option<&str>) -> Result<(String, Option<String>), String> {
        let reference = FileReference::new("backing file", Name::from(name), format.map(Name::from));
        match resolve(&reference) {
            Ok(reference) => Ok((
                reference.name.to_text().into_owned(),
                reference.format.map(|format| format.to_text().into_owned()),
            )),
            Err(problem) => Err(problem.to_string()),
        }
    }

    #[test]
    fn descriptions_of_one_file() {
        for (name, stated, file, format) in [
            (r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"a"}}"#, None, "a", Some("qcow2")),
            (r#"json:{"driver":"qcow2","file.driver":"file","file.filename":"a"}"#, Some("qcow2"), "a", Some("qcow2")),
            (r#"json: { "file" : { "filename" : "a" } } "#, None, "a", None),
            (r#"json:{"filename":"a"}"#, Some("vmdk"), "a", Some("vmdk")),
            (r#"json:{"driver":"file","filename":"a:b"}"#, None, "./a:b", Some("raw")),
            (r#"json:{"driver":"host_device","filename":"/dev/sdb"}"#, None, "/dev/sdb", Some("raw")),
            (r#"json:{"driver":"raw","file":{"driver":"file","filename":"a"}}"#, None, "a", Some("raw")),
            // The format of the image is that of the outermost node.
            (r#"json:{"driver":"raw","file":{"driver":"file","filename":"a"}}"#, Some("qcow2"), "a", Some("qcow2")),
            (
                r#"json:{"driver":"raw","file":{"driver":"qcow2","file":{"driver":"file","filename":"a"}}}"#,
                Some("raw"),
                "a",
                Some("qcow2"),
            ),
            (
                r#"json:{"driver":"qcow2","cache":{"direct":true},"file":{"filename":"file:a","locking":"off","aio":"io_uring"}}"#,
                None,
                "a",
                Some("qcow2"),
            ),
            (r#"json:{"driver":"qcow2","file":{"filename":"\u00e4\ud83d\ude00\/\n"}}"#, None, "ä😀/\n", Some("qcow2")),
            (
                r#"json:{"driver":"qcow2","file":{"filename":"a"},"encrypt":{"format":"luks","key-secret":"s"}}"#,
                None,
                "a",
                Some("qcow2"),
            ),
            (r#"json:{"driver":"luks","key-secret":"s","file.filename":"a"}"#, None, "a", Some("luks")),
            ("file:a", Some("raw"), "a", Some("raw")),
            ("file:a:b", None, "./a:b", None),
            ("file:///vm/a", None, "///vm/a", None),
            ("host_device:/dev/sdb", None, "/dev/sdb", None),
            ("a", None, "a", None),
            ("nbd:host", None, "nbd:host", None),
        ] {
            let expected = (file.to_owned(), format.map(str::to_owned));
            assert_eq!(resolved(name, stated), Ok(expected), "{name}");
        }
    }

    #[test]
    fn other_descriptions_are_refused_with_the_reason() {
        let deep = format!("json:{}{}", r#"{"file":"#.repeat(200), "}".repeat(200));
        for (name, reason) in [
            (r#"json:{"driver":"nbd","host":"h","port":"1"}"#, "driver 'nbd'"),
            (r#"json:{"driver":"qcow2","file":{"driver":"nbd","server.host":"h"}}"#, "driver 'nbd', no file name"),
            (r#"json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"a"}}"#, "key 'offset'"),
            (r#"json:{"driver":"raw","size":"512","file.filename":"a"}"#, "key 'size'"),
            (r#"json:{"driver":"qcow2","file":{"filename":"a"},"backing":null}"#, "key 'backing'"),
            (r#"json:{"driver":"qcow2","file":{"filename":"a"},"backing":{"driver":"x"}}"#, "key 'backing.driver'"),
            (r#"json:{"driver":"qcow2","file":"node"}"#, "no file name"),
            (r#"json:{"driver":"qcow2","file":{"driver":"vmdk","filename":"a"}}"#, "'qcow2' over 'vmdk'"),
            (r#"json:{"driver":"qcow2","file":{"filename":"a"},"driver":"raw"}"#, "twice"),
            (r#"json:{"children":["a"]}"#, "list"),
            ("json:{", "JSON"),
            ("json:", "JSON"),
            (r#"json:{"a":1}x"#, "JSON"),
            (r#"json:{"a":"\ud800"}"#, "JSON"),
            (&deep, "nested"),
        ] {
            let refused = resolved(name, None).unwrap_err();
            assert!(refused.contains(reason), "{name}: {refused}");
        }
    }
}
