//! XML of untrusted files: a tree with bounds.

use roxmltree::{Document, Node, ParsingOptions};

use super::table::Fields;
use crate::error::{Error, Problem, Result};
use crate::limits::Budget;

/// Largest number of elements, texts and comments, over which drivers search more than once. An OVF package of 1000 disks has 30,000.
const MAX_NODES: u32 = 200_000;
/// Largest number of levels. For each node, the way to the root is followed. An OVF package has ten.
const MAX_DEPTH: usize = 200;
/// Largest number of attributes of an element, each of which is compared with all others. An OVF package has ten.
const MAX_ATTRIBUTES: u64 = 500;
/// Memory in bytes of the tree: the parser reserves it for each `<`, as for a node, and for each `=`, as for an attribute.
const NODE: u64 = 96;
const ATTRIBUTE: u64 = 64;

/// Parses a document of the format that `fields` names. The caller has limited its length.
///
/// # Errors
/// [`Error::Corrupt`] for what is not well-formed XML in UTF-8. [`Error::Unsupported`] for a document type definition, [`Error::Limit`] for
/// more than 200,000 nodes, 200 levels or 500 attributes, and for a tree that is larger than the budget.
pub(crate) fn parse<'a>(fields: &Fields, text: &'a str, budget: &Budget) -> Result<Document<'a>> {
    check_attributes(fields, text)?;
    let count = |wanted| text.bytes().filter(|byte| *byte == wanted).count() as u64;
    budget.take(count(b'<') * NODE + count(b'=') * ATTRIBUTE, fields.0, "the tree of elements", 0)?;
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|error| not_xml(fields, text, &error))?;
    check_depth(fields, document.root_element())?;
    Ok(document)
}

/// The text of a document, which has to be UTF-8.
pub(crate) fn text<'a>(fields: &Fields, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to() as u64;
        fields.at("text", at).fault(Problem::Conflict { value: at, finding: "not UTF-8" })
    })
}

/// Checks the number of attributes of each element, of which the parser compares each with all others. A tag ends before the next `<`.
fn check_attributes(fields: &Fields, text: &str) -> Result<()> {
    for tag in text.split('<') {
        let is_quoted = |rest: &str| rest.trim_start().starts_with(['"', '\'']);
        let count = tag.split('=').skip(1).filter(|rest| is_quoted(rest)).count();
        fields.at("number of attributes", 0).at_most(count as u64, MAX_ATTRIBUTES)?;
    }
    Ok(())
}

/// Checks the number of levels. The parser does not recurse.
fn check_depth(fields: &Fields, root: Node<'_, '_>) -> Result<()> {
    let depth = |node: Node<'_, '_>| node.ancestors().take(MAX_DEPTH + 1).count();
    match root.descendants().find(|node| node.is_element() && depth(*node) > MAX_DEPTH) {
        Some(node) => {
            let field = fields.at("depth of the elements", node.range().start as u64);
            field.at_most(MAX_DEPTH as u64 + 1, MAX_DEPTH as u64)
        }
        None => Ok(()),
    }
}

fn not_xml(fields: &Fields, text: &str, error: &roxmltree::Error) -> Error {
    let format = fields.0;
    match error {
        roxmltree::Error::DtdDetected => Error::unsupported(format, "a document type definition"),
        roxmltree::Error::NodesLimitReached => {
            let limit = u64::from(MAX_NODES);
            Error::limit(format, "number of elements", limit + 1, limit)
        }
        error => {
            let position = error.pos();
            let lines = text.split_inclusive('\n').take(position.row.saturating_sub(1) as usize);
            let at = lines.map(|line| line.len() as u64).sum::<u64>() + u64::from(position.col.saturating_sub(1));
            let finding = "not well-formed XML";
            fields.at("line", at).fault(Problem::Conflict { value: position.row.into(), finding })
        }
    }
}
