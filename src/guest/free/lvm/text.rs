//! The text of LVM metadata: sections in braces, and keys with one value or a list of them (lvm.conf(5), "syntax").

use std::collections::BTreeMap;

use super::super::volume::{Found, kept};

/// Sections in sections. A volume group has four: itself, its volumes, a volume, a segment.
const MOST_DEPTH: usize = 16;

/// Sections, keys and values in all, each of which takes up to 100 bytes of memory.
const MOST_NODES: usize = 1 << 18;

/// A section. Names are those of the text, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Section<'a>(BTreeMap<&'a [u8], Node<'a>>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node<'a> {
    Section(Section<'a>),
    /// A value alone is a list of one.
    Values(Vec<Value<'a>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    /// What is between the quotation marks, where a backslash is before a quotation mark or a backslash.
    Text(&'a [u8]),
}

/// Parses the text of a metadata area.
pub(super) fn parse(text: &[u8]) -> Found<Section<'_>> {
    // It ends with a zero.
    let len = text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    Parser { rest: text.get(..len).unwrap_or_default(), nodes: 0 }.section(0)
}

impl<'a> Section<'a> {
    /// The sections in this one, by name.
    pub fn sections(&self) -> impl Iterator<Item = (&'a [u8], &Section<'a>)> {
        self.0.iter().filter_map(|(name, node)| match node {
            Node::Section(section) => Some((*name, section)),
            Node::Values(_) => None,
        })
    }

    /// A section in this one; an empty one if there is none.
    pub fn section(&self, name: &str) -> Found<&Section<'a>> {
        match self.0.get(name.as_bytes()) {
            Some(Node::Section(section)) => Ok(section),
            Some(Node::Values(_)) => wrong(name),
            None => {
                static EMPTY: Section<'static> = Section(BTreeMap::new());
                Ok(&EMPTY)
            }
        }
    }

    /// Whether there is such a key or section.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name.as_bytes())
    }

    /// The values of a key; none if it is not there.
    pub fn values(&self, key: &str) -> Found<&[Value<'a>]> {
        match self.0.get(key.as_bytes()) {
            Some(Node::Values(values)) => Ok(values),
            Some(Node::Section(_)) => wrong(key),
            None => Ok(&[]),
        }
    }

    /// The only value of a key, a number.
    pub fn number(&self, key: &str) -> Found<u64> {
        match self.values(key)? {
            [Value::Number(number)] => Ok(*number),
            _ => wrong(key),
        }
    }

    /// The only value of a key, a text.
    pub fn text(&self, key: &str) -> Found<&'a [u8]> {
        match self.values(key)? {
            [Value::Text(text)] => Ok(text),
            _ => wrong(key),
        }
    }

    /// Calls `each` with every text in the section, and in the sections in it.
    pub fn for_each_text(&self, each: &mut dyn FnMut(&'a [u8])) {
        for node in self.0.values() {
            match node {
                Node::Section(section) => section.for_each_text(each),
                Node::Values(values) => values.iter().for_each(|value| match value {
                    Value::Text(text) => each(text),
                    Value::Number(_) => {}
                }),
            }
        }
    }
}

/// The error for a key without the value that it has in a valid text.
pub(super) fn wrong<T>(key: &str) -> Found<T> {
    kept(format!("the LVM metadata has no valid '{key}'"))
}

struct Parser<'a> {
    rest: &'a [u8],
    nodes: usize,
}

impl<'a> Parser<'a> {
    /// What follows the opening brace of a section, up to its closing one; at depth 0 the whole text.
    fn section(&mut self, depth: usize) -> Found<Section<'a>> {
        let mut section = Section::default();
        loop {
            match (self.peek(), depth) {
                (None, 0) => return Ok(section),
                (Some(b'}'), 1..) => {
                    self.next();
                    return Ok(section);
                }
                _ => {}
            }
            let name = self.name()?;
            self.count()?;
            let node = match self.next() {
                Some(b'{') if depth < MOST_DEPTH => Node::Section(self.section(depth + 1)?),
                Some(b'=') => Node::Values(self.values()?),
                _ => return self.invalid(),
            };
            if section.0.insert(name, node).is_some() {
                return self.invalid();
            }
        }
    }

    fn values(&mut self) -> Found<Vec<Value<'a>>> {
        if self.peek() != Some(b'[') {
            return Ok(vec![self.value()?]);
        }
        self.next();
        let mut values = Vec::new();
        while self.peek() != Some(b']') {
            if !values.is_empty() && self.next() != Some(b',') {
                return self.invalid();
            }
            values.push(self.value()?);
        }
        self.next();
        Ok(values)
    }

    fn value(&mut self) -> Found<Value<'a>> {
        self.count()?;
        if self.peek() != Some(b'"') {
            let digits = self.take_while(|byte| byte.is_ascii_digit());
            let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
            return number.map_or_else(|| self.invalid(), |number| Ok(Value::Number(number)));
        }
        self.next();
        let mut is_escaped = false;
        let text = self.take_while(|byte| {
            let ends = byte == b'"' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            !ends
        });
        match self.next_byte() {
            Some(b'"') => Ok(Value::Text(text)),
            _ => self.invalid(),
        }
    }

    /// The name of a key or a section.
    fn name(&mut self) -> Found<&'a [u8]> {
        self.peek();
        match self.take_while(|byte| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte)) {
            [] => self.invalid(),
            name => Ok(name),
        }
    }

    fn count(&mut self) -> Found<()> {
        self.nodes += 1;
        if self.nodes > MOST_NODES { kept("the LVM metadata is too large") } else { Ok(()) }
    }

    fn invalid<T>(&self) -> Found<T> {
        kept(format!("the LVM metadata is not valid, {} bytes before its end", self.rest.len()))
    }

    /// The next byte after blanks and comments.
    fn peek(&mut self) -> Option<u8> {
        loop {
            self.take_while(|byte| byte.is_ascii_whitespace());
            if self.rest.first() != Some(&b'#') {
                return self.rest.first().copied();
            }
            self.take_while(|byte| byte != b'\n');
        }
    }

    /// Takes the next byte after blanks and comments.
    fn next(&mut self) -> Option<u8> {
        self.peek();
        self.next_byte()
    }

    fn next_byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn take_while(&mut self, mut is_part: impl FnMut(u8) -> bool) -> &'a [u8] {
        let len = self.rest.iter().position(|byte| !is_part(*byte)).unwrap_or(self.rest.len());
        let (part, rest) = self.rest.split_at(len);
        self.rest = rest;
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_refused(text: &str) -> bool {
        parse(text.as_bytes()).is_err()
    }

    #[test]
    fn sections_values_and_comments() {
        let text = b"# Generated\nvg{\nid = \"a-b\"\t# [x]\nflags=[]\nlist = [\"p\\\"v\", 7 ,\"\"]\ninner { n = 18446744073709551615 }\n}\nversion = 1\n\0\0";
        let top = parse(text).unwrap();
        let [(b"vg", vg)] = top.sections().collect::<Vec<_>>()[..] else { panic!("{top:?}") };
        assert_eq!((top.number("version"), vg.text("id")), (Ok(1), Ok(&b"a-b"[..])));
        assert_eq!(vg.values("flags"), Ok(&[][..]));
        assert_eq!(vg.values("list"), Ok(&[Value::Text(b"p\\\"v"), Value::Number(7), Value::Text(b"")][..]));
        assert_eq!(vg.section("inner").unwrap().number("n"), Ok(u64::MAX));
        assert!(vg.number("id").is_err() && vg.text("inner").is_err() && vg.section("id").is_err());
        assert!(vg.section("none").unwrap().0.is_empty() && vg.values("none") == Ok(&[]));
        let mut texts = Vec::new();
        top.for_each_text(&mut |text| texts.push(text));
        assert_eq!(texts, [&b"a-b"[..], b"p\\\"v", b""]);
    }

    #[test]
    fn invalid_texts() {
        for text in [
            "a",
            "a {",
            "a { b = 1",
            "}",
            "a = ",
            "a = b",
            "a = \"b",
            "a = \"b\\\"",
            "a = [1",
            "a = [1 2]",
            "a = [1,]",
            "a = -1",
            "a = 1.5",
            "a = 18446744073709551616",
            "a = 1 a = 2",
            "a { } a = 1",
            "= 1",
            "a b",
            "a = {}",
            "\"a\" = 1",
        ] {
            assert!(is_refused(text), "{text}");
        }
        assert!(!is_refused("") && !is_refused("# comment"));
    }

    #[test]
    fn depth_and_count_are_bounded() {
        let nested = |depth: usize| "a {".repeat(depth) + &"}".repeat(depth);
        assert!(
            !is_refused(&nested(MOST_DEPTH)) && is_refused(&nested(MOST_DEPTH + 1)) && is_refused(&nested(100_000))
        );
        let values = |count: usize| format!("a = [{}1]", "1,".repeat(count - 1));
        assert!(!is_refused(&values(MOST_NODES - 1)) && is_refused(&values(MOST_NODES)));
    }

    fn tree() -> impl Strategy<Value = String> {
        let value = prop_oneof![any::<u64>().prop_map(|n| n.to_string()), "\"[a-z #{}=,]{0,5}\""];
        let list = prop::collection::vec(value.clone(), 0..4).prop_map(|values| format!("= [{}]", values.join(", ")));
        let leaf = prop_oneof![value.prop_map(|value| format!("= {value}")), list];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop::collection::btree_map("[a-z0-9_.+-]{1,6}", inner, 0..5).prop_map(|nodes| {
                let nodes: String = nodes.iter().map(|(name, node)| format!("{name} {node}\n")).collect();
                format!("{{ # {{ \n{nodes}}}")
            })
        })
    }

    /// The text in the form of `tree`.
    fn print(section: &Section) -> String {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let nodes = section.0.iter().map(|(name, node)| match node {
            Node::Section(section) => format!("{} {{ # {{ \n{}}}\n", text(name), print(section)),
            Node::Values(values) => {
                let values = values.iter().map(|value| match value {
                    Value::Number(number) => number.to_string(),
                    Value::Text(bytes) => format!("\"{}\"", text(bytes)),
                });
                format!("{} = [{}]\n", text(name), values.collect::<Vec<_>>().join(", "))
            }
        });
        nodes.collect()
    }

    proptest! {
        #[test]
        fn what_is_printed_is_parsed(tree in tree()) {
            let text = format!("top {tree}\n");
            let parsed = parse(text.as_bytes()).unwrap();
            let printed = print(&parsed);
            prop_assert_eq!(parse(printed.as_bytes()).unwrap(), parsed);
            // But for brackets, which a single value does not need.
            let bare = |text: &str| text.replace(['[', ']'], "");
            prop_assert_eq!(bare(&printed), bare(&text));
        }

        #[test]
        fn garbage_never_panics(text in prop::collection::vec(prop::sample::select(b"a1{}[]=,\"\\# \n\0".to_vec()), 0..60)) {
            let _ = parse(&text);
        }
    }
}
