//! Elements of HTML and SVG. Whatever is put into one is escaped, so no name out of a file becomes markup.

use std::fmt::{self, Display, Write};

/// HTML elements without an end tag.
const VOID: [&str; 5] = ["meta", "link", "br", "hr", "img"];

/// An element with attributes and children. Printed, it is HTML and well-formed XML at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    children: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Element(Element),
    Text(String),
    /// The body of a style sheet, which HTML does not unescape.
    Style(&'static str),
}

impl Element {
    /// `<name></name>`.
    pub fn new(name: &'static str) -> Self {
        Self { name, attributes: Vec::new(), children: Vec::new() }
    }

    /// `<name class="class"></name>`.
    pub fn of(name: &'static str, class: impl Display) -> Self {
        Self::new(name).attr("class", class)
    }

    /// `<style>` with `sheets`, texts of this program alone.
    pub fn style(sheets: &[&'static str]) -> Self {
        let mut element = Self::new("style");
        element.children.extend(sheets.iter().map(|sheet| Node::Style(sheet)));
        element
    }

    /// With an attribute.
    #[must_use]
    pub fn attr(mut self, name: &'static str, value: impl Display) -> Self {
        self.attributes.push((name, value.to_string()));
        self
    }

    /// With attributes that are coordinates.
    #[must_use]
    pub fn at<const N: usize>(mut self, values: [(&'static str, f64); N]) -> Self {
        self.attributes.extend(values.map(|(name, value)| (name, Px(value).to_string())));
        self
    }

    /// With text after the children so far.
    #[must_use]
    pub fn text(mut self, text: impl Display) -> Self {
        self.children.push(Node::Text(text.to_string()));
        self
    }

    /// With one more child.
    #[must_use]
    pub fn child(mut self, child: Self) -> Self {
        self.push(child);
        self
    }

    /// With more children.
    #[must_use]
    pub fn children(mut self, children: impl IntoIterator<Item = Self>) -> Self {
        self.children.extend(children.into_iter().map(Node::Element));
        self
    }

    /// Adds a child.
    pub fn push(&mut self, child: Self) {
        self.children.push(Node::Element(child));
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, attributes, children } = self;
        write!(f, "<{name}")?;
        for (key, value) in attributes {
            write!(f, " {key}=\"")?;
            escape(f, value)?;
            f.write_char('"')?;
        }
        if children.is_empty() && VOID.contains(name) {
            return f.write_str(" />");
        }
        f.write_char('>')?;
        for child in children {
            match child {
                Node::Element(element) => element.fmt(f)?,
                Node::Text(text) => escape(f, text)?,
                Node::Style(sheet) => f.write_str(sheet)?,
            }
        }
        write!(f, "</{name}>")
    }
}

/// Writes `text` so that neither text nor a quoted attribute ends early. Control characters, which XML has no
/// spelling for, become the replacement character.
fn escape(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for c in text.chars() {
        match c {
            '&' => f.write_str("&amp;")?,
            '<' => f.write_str("&lt;")?,
            '>' => f.write_str("&gt;")?,
            '"' => f.write_str("&quot;")?,
            '\n' | '\t' => f.write_char(c)?,
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => f.write_char('\u{fffd}')?,
            c => f.write_char(c)?,
        }
    }
    Ok(())
}

/// A coordinate, to a tenth of a pixel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Px(pub(super) f64);

impl Display for Px {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = (self.0 * 10.0).round();
        if tenths % 10.0 == 0.0 { write!(f, "{}", tenths as i64 / 10) } else { write!(f, "{:.1}", tenths / 10.0) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The element names of `xml`, which must be well formed: every tag closed in order, attributes quoted and
    /// unique, no stray `<` or `&`.
    #[track_caller]
    pub(crate) fn well_formed(xml: &str) -> Vec<String> {
        let (mut open, mut names, mut rest) = (Vec::new(), Vec::new(), xml);
        while let Some(start) = rest.find('<') {
            assert_entities(&rest[..start]);
            rest = &rest[start + 1..];
            let end = tag_end(rest);
            let (tag, after) = (&rest[..end], &rest[end + 1..]);
            rest = after;
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name), "closed out of order");
            } else if !tag.starts_with('!') {
                let inner = tag.strip_suffix('/').unwrap_or(tag);
                let name = inner.split_whitespace().next().unwrap().to_owned();
                assert_attributes(&inner[name.len()..]);
                names.push(name.clone());
                if name == "style" {
                    rest = &rest[rest.find("</style").unwrap()..];
                }
                if inner.len() == tag.len() {
                    open.push(name);
                }
            }
        }
        assert_entities(rest);
        assert!(open.is_empty(), "never closed: {open:?}");
        names
    }

    fn tag_end(tag: &str) -> usize {
        let mut quoted = false;
        tag.find(|c| {
            quoted ^= c == '"';
            c == '>' && !quoted
        })
        .expect("a tag without an end")
    }

    #[track_caller]
    fn assert_entities(text: &str) {
        for part in text.split('&').skip(1) {
            let known = ["amp;", "lt;", "gt;", "quot;"].iter().any(|entity| part.starts_with(entity));
            assert!(known, "stray & in {text:?}");
        }
        assert!(!text.contains('>'), "stray > in {text:?}");
    }

    #[track_caller]
    fn assert_attributes(text: &str) {
        let (mut rest, mut seen) = (text.trim(), Vec::new());
        while !rest.is_empty() {
            let (name, after) = rest.split_once("=\"").expect("an attribute without a value");
            let (value, after) = after.split_once('"').unwrap();
            assert!(!value.contains('<') && !seen.contains(&name), "attribute {name} of {text:?}");
            assert_entities(value);
            seen.push(name);
            rest = after.trim_start();
        }
    }

    #[test]
    fn everything_is_escaped() {
        let nasty = "</script>\"'&<b a=1>\u{0}\n";
        let element = Element::of("p", nasty).attr("title", nasty).text(nasty).child(Element::new("br"));
        let text = element.to_string();
        assert_eq!(well_formed(&text), ["p", "br"]);
        assert!(text.contains("&lt;/script&gt;&quot;'&amp;&lt;b a=1&gt;\u{fffd}\n"), "{text}");
        assert!(!text.contains("</script") && text.ends_with("<br /></p>"));
    }

    #[test]
    fn coordinates_are_short() {
        let printed = [1.0, -0.04, 12.34, 99.96, -3.25].map(|x| Px(x).to_string());
        assert_eq!(printed, ["1", "0", "12.3", "100", "-3.3"]);
    }
}
