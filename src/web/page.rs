//! One page in one file: the look, and the parts that pages are made of.

use super::chart;
use super::markup::Element;

const STYLE: &str = include_str!("page.css");
/// The browser itself refuses every request, whatever a page contains.
pub(super) const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// The head of every page: what the browser lets it do, its title and its look.
pub(super) fn head(title: &str, policy: &str, styles: &[&'static str]) -> Element {
    Element::new("head")
        .child(Element::new("meta").attr("charset", "utf-8"))
        .child(Element::new("meta").attr("http-equiv", "Content-Security-Policy").attr("content", policy))
        .child(Element::new("meta").attr("name", "viewport").attr("content", "width=device-width, initial-scale=1"))
        .child(Element::new("meta").attr("name", "color-scheme").attr("content", "light dark"))
        .child(Element::new("link").attr("rel", "icon").attr("href", "data:,"))
        .child(Element::new("title").text(title))
        .child(Element::style(styles))
}

/// A whole HTML document with `title` and the parts of its body.
pub fn html(title: &str, body: impl IntoIterator<Item = Element>) -> String {
    let head = head(title, POLICY, &[STYLE, chart::STYLE]);
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

/// A cell of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// Its text.
    pub text: String,
    /// Its looks: empty, `number`, `meaning`, or `number best`.
    pub class: &'static str,
}

impl Cell {
    /// Words.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), class: "" }
    }

    /// A figure, marked when it is the best of its kind.
    pub fn number(text: impl Into<String>, best: bool) -> Self {
        Self { text: text.into(), class: if best { "number best" } else { "number" } }
    }

    fn element(&self, name: &'static str) -> Element {
        let element = Element::new(name).text(&self.text);
        if self.class.is_empty() { element } else { element.attr("class", self.class) }
    }
}

/// A row of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// The name of the rows that follow.
    Group(String),
    /// A name and cells.
    Cells(String, Vec<Cell>),
}

/// A table; the first column names the rows.
pub fn table(head: &[Cell], rows: &[Row]) -> Element {
    let head = Element::new("tr").children(head.iter().map(|cell| cell.element("th").attr("scope", "col")));
    let body = rows.iter().map(|row| match row {
        Row::Group(name) => Element::of("tr", "group").child(Element::new("th").attr("colspan", 99).text(name)),
        Row::Cells(name, cells) => Element::new("tr")
            .child(Element::new("th").attr("scope", "row").text(name))
            .children(cells.iter().map(|cell| cell.element("td"))),
    });
    let table =
        Element::new("table").child(Element::new("thead").child(head)).child(Element::new("tbody").children(body));
    Element::of("div", "panel").child(table)
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
