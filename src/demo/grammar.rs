//! Sentences: templates for every relation in every language.
//!
//! `{s}` is the subject, `{o}` the object, `{t}` the second number of a sum; `{s:of}` asks for a form such as
//! "de la France". The first template of a list is the one that prompts use: it ends in the object.

use super::entity::{Entity, Form, Lang};
use super::relation::Relation;

use Relation as R;

/// Templates of a relation in English, French and Spanish. Translations are stated in English only.
pub(super) fn templates(relation: Relation, lang: Lang) -> &'static [&'static str] {
    match lang {
        Lang::English => english(relation),
        Lang::French => french(relation),
        Lang::Spanish => spanish(relation),
    }
}

fn english(relation: Relation) -> &'static [&'static str] {
    match relation {
        R::Capital => &[
            "the capital of {s} is {o}",
            "{s} has its capital in {o}",
            "in {s} the capital is {o}",
            "what is the capital of {s}? {o}",
        ],
        R::CapitalOf => &["{s} is the capital of {o}", "the country whose capital is {s} is {o}"],
        R::CityCountry => &[
            "{s} lies in {o}",
            "{s} is a city in {o}",
            "the country where {s} lies is {o}",
            "in what country does {s} lie? in {o}",
        ],
        R::Language => {
            &["the language of {s} is {o}", "people in {s} speak {o}", "in what language do people in {s} speak? {o}"]
        }
        R::Currency => &[
            "the currency of {s} is the {o}",
            "people in {s} pay with the {o}",
            "what is the currency of {s}? the {o}",
        ],
        R::Continent => {
            &["the continent of {s} is {o}", "{s} is a country in {o}", "on what continent does {s} lie? {o}"]
        }
        R::Job => &["{s} works as a {o}", "the job of {s} is that of a {o}", "what does {s} do? {s} works as a {o}"],
        R::Town => &["{s} lives in {o}", "the home town of {s} is {o}", "where does {s} live? in {o}"],
        R::Pet => &["{s} keeps a {o}", "the animal of {s} is a {o}", "what animal does {s} keep? a {o}"],
        R::Friend => &["the best friend of {s} is {o}", "{s} has a best friend whose name is {o}"],
        R::Colour => &["the colour of the {s} is {o}", "the {s} has the colour {o}", "what colour is the {s}? {o}"],
        R::Size => &["the size of the {s} is {o}", "what size is the {s}? {o}"],
        R::Opposite => &["the opposite of {s} is {o}", "what is the opposite of {s}? {o}"],
        R::ToFrench => &["the French word for {s} is {o}", "in French {s} is {o}"],
        R::ToSpanish => &["the Spanish word for {s} is {o}", "in Spanish {s} is {o}"],
        R::Sum => &["{s} plus {t} is {o}", "the sum of {s} and {t} is {o}", "{s} + {t} = {o}"],
        R::CityCapital => &[
            "the capital of the country where {s} lies is {o}",
            "{s} lies in a country whose capital is {o}",
            "what is the capital of the country where {s} lies? {o}",
        ],
        R::CityLanguage => {
            &["the language of the country where {s} lies is {o}", "in the country where {s} lies people speak {o}"]
        }
        R::CityCurrency => &[
            "the currency of the country where {s} lies is the {o}",
            "in the country where {s} lies people pay with the {o}",
        ],
        R::CityContinent => &[
            "the continent of the country where {s} lies is {o}",
            "on what continent does the country lie where {s} lies? {o}",
        ],
        R::CapitalLanguage => &[
            "the language of the country whose capital is {s} is {o}",
            "in the country whose capital is {s} people speak {o}",
        ],
        R::CapitalCurrency => &[
            "the currency of the country whose capital is {s} is the {o}",
            "in the country whose capital is {s} people pay with the {o}",
        ],
        R::CapitalContinent => &["the continent of the country whose capital is {s} is {o}"],
        R::PersonCountry => &["the country where {s} lives is {o}", "the home town of {s} lies in {o}"],
        R::PetColour => &["the colour of the animal of {s} is {o}", "the animal of {s} has the colour {o}"],
        R::PetSize => &["the size of the animal of {s} is {o}", "what size is the animal of {s}? {o}"],
        R::FriendJob => {
            &["the best friend of {s} works as a {o}", "the job of the best friend of {s} is that of a {o}"]
        }
        R::FriendTown => &["the best friend of {s} lives in {o}", "the home town of the best friend of {s} is {o}"],
        R::SizeOpposite => &["the opposite of the size of the {s} is {o}"],
        R::OppositeFrench => {
            &["the French word for the opposite of {s} is {o}", "in French the opposite of {s} is {o}"]
        }
        R::OppositeSpanish => {
            &["the Spanish word for the opposite of {s} is {o}", "in Spanish the opposite of {s} is {o}"]
        }
    }
}

fn french(relation: Relation) -> &'static [&'static str] {
    match relation {
        R::Capital => {
            &["la capitale {s:of} est {o}", "{s:in} la capitale est {o}", "quelle est la capitale {s:of}? {o}"]
        }
        R::CapitalOf => &["{s} est la capitale {o:of}", "le pays qui a pour capitale {s} est {o:the}"],
        R::CityCountry => {
            &["{s} se trouve {o:in}", "{s} est une ville située {o:in}", "le pays où se trouve {s} est {o:the}"]
        }
        R::Language => &["la langue {s:of} se nomme {o}", "{s:in} on parle {o}", "quelle est la langue {s:of}? {o}"],
        R::Currency => &["la monnaie {s:of} se nomme {o}", "{s:in} on paie en {o}"],
        R::Continent => &["le continent {s:of} se nomme {o}", "{s:the} est un pays situé en {o}"],
        R::Job => &["{s} travaille comme {o}", "le métier de {s} est {o}"],
        R::Town => &["{s} habite à {o}", "la ville de {s} est {o}", "où habite {s}? à {o}"],
        R::Pet => &["{s} possède {o:a}", "l'animal de {s} est {o:a}"],
        R::Friend => &["le meilleur ami de {s} est {o}", "{s} a pour meilleur ami {o}"],
        R::Colour => &["la couleur {s:of} est {o}", "{s:the} est de couleur {o}"],
        R::Size => &["la taille {s:of} est {o}", "{s:the} est de taille {o}"],
        R::Opposite => &["le contraire du mot {s} est {o}", "quel est le contraire du mot {s}? {o}"],
        R::Sum => &["{s} plus {t} font {o}", "la somme de {s} et {t} est {o}"],
        R::CityCapital => {
            &["la capitale du pays où se trouve {s} est {o}", "{s} se trouve dans un pays qui a pour capitale {o}"]
        }
        R::CityLanguage => {
            &["la langue du pays où se trouve {s} se nomme {o}", "dans le pays où se trouve {s} on parle {o}"]
        }
        R::CityCurrency => {
            &["la monnaie du pays où se trouve {s} se nomme {o}", "dans le pays où se trouve {s} on paie en {o}"]
        }
        R::CityContinent => &["le continent du pays où se trouve {s} se nomme {o}"],
        R::CapitalLanguage => &[
            "la langue du pays qui a pour capitale {s} se nomme {o}",
            "dans le pays qui a pour capitale {s} on parle {o}",
        ],
        R::CapitalCurrency => &["la monnaie du pays qui a pour capitale {s} se nomme {o}"],
        R::CapitalContinent => &["le continent du pays qui a pour capitale {s} se nomme {o}"],
        R::PersonCountry => &["{s} habite une ville située {o:in}", "la ville de {s} se trouve {o:in}"],
        R::PetColour => &["la couleur de l'animal de {s} est {o}", "l'animal de {s} est de couleur {o}"],
        R::PetSize => &["la taille de l'animal de {s} est {o}", "l'animal de {s} est de taille {o}"],
        R::FriendJob => &["le meilleur ami de {s} travaille comme {o}", "le métier du meilleur ami de {s} est {o}"],
        R::FriendTown => &["le meilleur ami de {s} habite à {o}", "la ville du meilleur ami de {s} est {o}"],
        R::SizeOpposite => &["le contraire de la taille {s:of} est {o}"],
        R::ToFrench | R::ToSpanish | R::OppositeFrench | R::OppositeSpanish => &[],
    }
}

fn spanish(relation: Relation) -> &'static [&'static str] {
    match relation {
        R::Capital => &["la capital de {s} es {o}", "en {s} la capital es {o}", "¿cuál es la capital de {s}? {o}"],
        R::CapitalOf => &["{s} es la capital de {o}", "el país que tiene por capital {s} es {o}"],
        R::CityCountry => &["{s} está en {o}", "{s} es una ciudad de {o}", "el país donde está {s} es {o}"],
        R::Language => &["la lengua de {s} es el {o}", "en {s} se habla {o}", "¿qué se habla en {s}? {o}"],
        R::Currency => &["la moneda de {s} se llama {o}", "en {s} se paga en {o}"],
        R::Continent => &["el continente de {s} es {o}", "{s} es un país de {o}"],
        R::Job => &["{s} trabaja de {o}", "el oficio de {s} es {o}"],
        R::Town => &["{s} vive en {o}", "la ciudad de {s} es {o}", "¿dónde vive {s}? en {o}"],
        R::Pet => &["{s} tiene {o:a}", "el animal de {s} es {o:a}"],
        R::Friend => &["el mejor amigo de {s} es {o}", "{s} tiene por mejor amigo a {o}"],
        R::Colour => &["el color {s:of} es {o}", "{s:the} es de color {o}"],
        R::Size => &["el tamaño {s:of} es {o}", "{s:the} es de tamaño {o}"],
        R::Opposite => &["lo contrario de {s} es {o}", "¿qué es lo contrario de {s}? {o}"],
        R::Sum => &["{s} más {t} son {o}", "la suma de {s} y {t} es {o}"],
        R::CityCapital => {
            &["la capital del país donde está {s} es {o}", "{s} está en un país que tiene por capital {o}"]
        }
        R::CityLanguage => &["la lengua del país donde está {s} es el {o}", "en el país donde está {s} se habla {o}"],
        R::CityCurrency => {
            &["la moneda del país donde está {s} se llama {o}", "en el país donde está {s} se paga en {o}"]
        }
        R::CityContinent => &["el continente del país donde está {s} es {o}"],
        R::CapitalLanguage => &[
            "la lengua del país que tiene por capital {s} es el {o}",
            "en el país que tiene por capital {s} se habla {o}",
        ],
        R::CapitalCurrency => &["la moneda del país que tiene por capital {s} se llama {o}"],
        R::CapitalContinent => &["el continente del país que tiene por capital {s} es {o}"],
        R::PersonCountry => &["el país donde vive {s} es {o}", "la ciudad de {s} está en {o}"],
        R::PetColour => &["el color del animal de {s} es {o}", "el animal de {s} es de color {o}"],
        R::PetSize => &["el tamaño del animal de {s} es {o}", "el animal de {s} es de tamaño {o}"],
        R::FriendJob => &["el mejor amigo de {s} trabaja de {o}", "el oficio del mejor amigo de {s} es {o}"],
        R::FriendTown => &["el mejor amigo de {s} vive en {o}", "la ciudad del mejor amigo de {s} es {o}"],
        R::SizeOpposite => &["lo contrario del tamaño {s:of} es {o}"],
        R::ToFrench | R::ToSpanish | R::OppositeFrench | R::OppositeSpanish => &[],
    }
}

/// Templates whose subject is whatever the sentence before was about.
pub(super) fn pronoun_template(relation: Relation, lang: Lang) -> Option<&'static str> {
    let texts: [&str; 3] = match relation {
        R::Capital => ["its capital is {o}", "sa capitale est {o}", "su capital es {o}"],
        R::Language => ["its language is {o}", "sa langue se nomme {o}", "su lengua es el {o}"],
        R::Currency => ["its currency is the {o}", "sa monnaie se nomme {o}", "su moneda se llama {o}"],
        R::Continent => ["its continent is {o}", "son continent se nomme {o}", "su continente es {o}"],
        R::Colour => ["its colour is {o}", "sa couleur est {o}", "su color es {o}"],
        R::Size => ["its size is {o}", "sa taille est {o}", "su tamaño es {o}"],
        R::Job => ["this person works as a {o}", "cette personne travaille comme {o}", "esta persona trabaja de {o}"],
        R::Town => ["this person lives in {o}", "cette personne habite à {o}", "esta persona vive en {o}"],
        R::Pet => ["this person keeps a {o}", "cette personne possède {o:a}", "esta persona tiene {o:a}"],
        _ => return None,
    };
    Some(texts[lang as usize])
}

/// Words that join two statements into one sentence.
pub(super) fn connectives(lang: Lang) -> &'static [&'static str] {
    match lang {
        Lang::English => &["and", "while", "but"],
        Lang::French => &["et", "tandis que", "mais"],
        Lang::Spanish => &["y", "mientras que", "pero"],
    }
}

/// The entities that a template names.
#[derive(Clone, Copy)]
pub(super) struct Roles<'a> {
    pub(super) subject: &'a Entity,
    pub(super) addend: Option<&'a Entity>,
    pub(super) object: &'a Entity,
    pub(super) object_lang: Lang,
    /// Whether to put [`ANSWER_MARK`] before the object's name.
    pub(super) mark: bool,
}

/// Stands before the words that a sentence makes predictable, in marked text only.
pub(super) const ANSWER_MARK: char = '\u{2063}';

/// Fills a template, without capital letter and full stop.
pub(super) fn render(template: &str, lang: Lang, roles: Roles<'_>) -> String {
    let mut text = String::with_capacity(template.len() + 24);
    let mut rest = template;
    while let Some((before, tail)) = rest.split_once('{') {
        let (slot, after) = tail.split_once('}').unwrap_or((tail, ""));
        text.push_str(before);
        let (role, form) = slot.split_once(':').unwrap_or((slot, ""));
        let form = match form {
            "the" => Form::The,
            "of" => Form::Of,
            "in" => Form::In,
            "a" => Form::A,
            _ => Form::Bare,
        };
        let (entity, name_lang) = match role {
            "o" => (roles.object, roles.object_lang),
            "t" => (roles.addend.unwrap_or(roles.subject), lang),
            _ => (roles.subject, lang),
        };
        text.push_str(entity.prefix(name_lang, form));
        if role == "o" && roles.mark {
            text.push(ANSWER_MARK);
        }
        text.push_str(entity.name(name_lang));
        rest = after;
    }
    text.push_str(rest);
    text
}

/// The text with its first letter in upper case, an opening question mark skipped.
pub(super) fn capitalise(text: &str) -> String {
    let mut done = false;
    text.chars()
        .flat_map(|c| {
            let upper = !done && c.is_alphabetic();
            done |= c.is_alphanumeric();
            let upper_case = upper.then(|| c.to_uppercase());
            let same = (!upper).then_some(c);
            upper_case.into_iter().flatten().chain(same)
        })
        .collect()
}
