//! The property list: a tree of dictionaries, arrays and data, in XML.

use base64ct::{Base64, Encoding};
use roxmltree::Node;

use super::FIELDS;
use crate::error::{Error, Problem, Result};
use crate::format::shared::table::Field;
use crate::format::shared::xml;
use crate::limits::Budget;

/// Calls `use_table` with each block table of the property list `text`, which is at host offset `at`, and with a field for its errors.
///
/// # Errors
/// Those of [`xml::parse`]; [`Error::Corrupt`] where the tables or a part of the path to them are missing, or are not base64.
pub(super) fn block_tables(
    text: &[u8],
    at: u64,
    budget: &Budget,
    mut use_table: impl FnMut(&[u8], Field) -> Result<()>,
) -> Result<()> {
    let missing = |name| FIELDS.at(name, at).fault(Problem::Missing);
    let text = xml::text(&FIELDS, text)?;
    let (document, skipped) = without_document_type(text, at)?;
    let at = at + skipped;
    let document = xml::parse(&FIELDS, document, budget)?;
    let root = document.root_element();
    let top = elements(root).next().filter(|_| root.has_tag_name("plist")).ok_or_else(|| missing("plist"))?;
    let fork = value(top, "resource-fork").ok_or_else(|| missing("resource-fork"))?;
    let tables = value(fork, "blkx").filter(|value| value.has_tag_name("array")).ok_or_else(|| missing("blkx"))?;
    for entry in elements(tables) {
        let data = value(entry, "Data").filter(|value| value.has_tag_name("data")).ok_or_else(|| missing("Data"))?;
        let field = FIELDS.at("block table", at + data.range().start as u64);
        let finding = "not base64";
        let decoded = base64(data).ok_or_else(|| field.fault(Problem::Conflict { value: field.at, finding }))?;
        use_table(&decoded, field)?;
    }
    Ok(())
}

/// The document after its document type, and the number of bytes before. Property lists name an external one, which no one needs. What could
/// make a small document expand to a large one, and what the parser therefore refuses, is an internal subset: it is in brackets.
fn without_document_type(text: &str, at: u64) -> Result<(&str, u64)> {
    const START: &str = "<!DOCTYPE";
    let Some(start) = text.find(START) else { return Ok((text, 0)) };
    let (before, rest) = text.split_at_checked(start).unwrap_or_default();
    let Some((declaration, document)) = rest.split_once('>') else {
        return Err(FIELDS.at("document type", at + start as u64).fault(Problem::Truncated));
    };
    // One inside of the document is refused by the parser.
    let is_prolog = !before.replace("<?xml", "").contains('<');
    if declaration.contains('[') {
        let feature = "a document type with declarations".into();
        return Err(Error::Unsupported { format: FIELDS.0, feature, at: Some(at + start as u64) });
    }
    match is_prolog {
        true => Ok((document, (text.len() - document.len()) as u64)),
        false => Ok((text, 0)),
    }
}

/// The value of `key` in a dictionary: the element after it.
fn value<'a, 'input>(dictionary: Node<'a, 'input>, key: &str) -> Option<Node<'a, 'input>> {
    let mut elements = elements(dictionary).filter(|_| dictionary.has_tag_name("dict"));
    while let (Some(name), Some(value)) = (elements.next(), elements.next()) {
        if name.has_tag_name("key") && name.text() == Some(key) {
            return Some(value);
        }
    }
    None
}

fn elements<'a, 'input>(node: Node<'a, 'input>) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(Node::is_element)
}

/// The bytes of a data element, whose text is broken into indented lines.
fn base64(data: Node<'_, '_>) -> Option<Vec<u8>> {
    let text: Vec<u8> = data.text().unwrap_or_default().bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let mut bytes = vec![0; text.len() / 4 * 3];
    let len = Base64::decode(&text, &mut bytes).ok()?.len();
    bytes.truncate(len);
    Some(bytes)
}
