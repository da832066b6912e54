//! One page in one file: the look, and the parts that pages are made of.

use super::chart;
use super::markup::Element;

const STYLE: &str = include_str!("page.css");
/// The browser itself refuses every request, whatever a page contains.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// A whole HTML document with `title` and the parts of its body.
pub fn html(title: &str, body: impl IntoIterator<Item = Element>) -> String {
    let head = Element::new("head")
        .child(Element::new("meta").attr("charset", "utf-8"))
        .child(Element::new("meta").attr("http-equiv", "Content-Security-Policy").attr("content", POLICY))
        .child(Element::new("meta").attr("name", "viewport").attr("content", "width=device-width, initial-scale=1"))
        .child(Element::new("meta").attr("name", "color-scheme").attr("content", "light dark"))
        .child(Element::new("link").attr("rel", "icon").attr("href", "data:,"))
        .child(Element::new("title").text(title))
        .child(Element::style(&[STYLE, chart::STYLE]));
    let body = Element::new("body").child(Element::new("main").children(body));
    format!("<!doctype html>\n{}\n", Element::new("html").attr("lang", "en").child(head).child(body))
}

/// What the page is about: a line above the title, the title, and facts below it.
pub fn header(above: &str, title: &str, facts: &[String]) -> Element {
    let facts = facts.iter().map(|fact| Element::of("li", "fact").text(fact));
    Element::new("header")
        .child(Element::of("p", "above").text(above))
        .child(Element::new("h1").text(title))
        .child(Element::of("ul", "facts").children(facts))
}

/// A headline figure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// What it is.
    pub label: &'static str,
    /// The figure.
    pub value: String,
    /// What it means or is measured on.
    pub note: String,
}

/// Headline figures beside each other.
pub fn cards(cards: &[Card]) -> Element {
    Element::of("div", "cards").children(cards.iter().map(|card| {
        Element::of("div", "card")
            .child(Element::of("div", "what").text(card.label))
            .child(Element::of("div", "value").text(&card.value))
            .child(Element::of("div", "note").text(&card.note))
    }))
}

/// A part of the page under a heading, with a remark where `note` is not empty.
pub fn section(title: &str, note: &str, children: impl IntoIterator<Item = Element>) -> Element {
    let mut section = Element::new("section").child(Element::new("h2").text(title));
    if !note.is_empty() {
        section.push(Element::of("p", "remark").text(note));
    }
    section.children(children)
}

/// Charts side by side as the window allows.
pub fn charts(charts: impl IntoIterator<Item = Element>) -> Element {
    Element::of("div", "charts").children(charts.into_iter().map(|chart| Element::new("figure").child(chart)))
}

/// One chart over the whole width.
pub fn wide(chart: Element) -> Element {
    Element::of("figure", "wide").child(chart)
}

/// Names and values.
pub fn pairs(pairs: &[(String, String)]) -> Element {
    let rows = pairs.iter().map(|(name, value)| {
        Element::new("tr")
            .child(Element::new("th").attr("scope", "row").text(name))
            .child(Element::new("td").text(value))
    });
    Element::of("table", "pairs").child(Element::new("tbody").children(rows))
}

/// Text as it would be typed.
pub fn code(text: &str) -> Element {
    Element::new("pre").child(Element::new("code").text(text))
}

/// Who made the page.
pub fn footer() -> Element {
    Element::new("footer").text(concat!("Made by mechinterp ", env!("CARGO_PKG_VERSION"), ". This page loads nothing."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::markup::tests::well_formed;

    #[test]
    fn a_page_is_well_formed_and_asks_for_nothing() {
        let nasty = "<script src=\"https://example.com/x.js\"></script>";
        let card = Card { label: "L0", value: nasty.into(), note: nasty.into() };
        let body = [
            header(nasty, nasty, &[nasty.into()]),
            cards(&[card]),
            section(nasty, nasty, [code(nasty), pairs(&[(nasty.into(), nasty.into())])]),
            footer(),
        ];
        let text = html(nasty, body);
        let names = well_formed(text.strip_prefix("<!doctype html>").unwrap());
        assert!(!names.iter().any(|name| ["script", "img", "iframe", "object"].contains(&name.as_str())), "{names:?}");
        assert_eq!(text.matches("<link").count(), 1, "the empty icon");
        for fetched in ["@import", "url(", "src=\"", "href=\"http"] {
            assert!(!text.replace("&quot;", "").contains(fetched), "{fetched}");
        }
    }
}
