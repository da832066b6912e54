//! The things the world is made of, and how a sentence names them in three languages.

/// A language of the corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lang {
    /// English.
    English,
    /// French.
    French,
    /// Spanish.
    Spanish,
}

impl Lang {
    /// All of them, in the order of every `[_; 3]` of names.
    pub const ALL: [Self; 3] = [Self::English, Self::French, Self::Spanish];

    /// English name of the language.
    pub const fn name(self) -> &'static str {
        match self {
            Self::English => "English",
            Self::French => "French",
            Self::Spanish => "Spanish",
        }
    }
}

/// What sort of thing an entity is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A country.
    Country,
    /// A city, capitals included.
    City,
    /// A continent.
    Continent,
    /// A language that a country speaks.
    Language,
    /// A currency.
    Currency,
    /// An invented person.
    Person,
    /// A job.
    Job,
    /// An animal.
    Animal,
    /// A colour.
    Colour,
    /// An adjective that has an opposite; sizes are among them.
    Adjective,
    /// A number from 0 to 18.
    Number,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 11] = [
        Self::Country,
        Self::City,
        Self::Continent,
        Self::Language,
        Self::Currency,
        Self::Person,
        Self::Job,
        Self::Animal,
        Self::Colour,
        Self::Adjective,
        Self::Number,
    ];

    /// The name in concept names, such as `country` in `country:France`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Country => "country",
            Self::City => "city",
            Self::Continent => "continent",
            Self::Language => "language",
            Self::Currency => "currency",
            Self::Person => "person",
            Self::Job => "job",
            Self::Animal => "animal",
            Self::Colour => "colour",
            Self::Adjective => "adjective",
            Self::Number => "number",
        }
    }
}

/// The article a noun takes in French or Spanish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Article {
    /// No article: names of people and cities, and some countries.
    Bare,
    /// le, el.
    Masculine,
    /// la.
    Feminine,
    /// l', before a vowel.
    Elided,
    /// l', but une.
    ElidedFeminine,
}

/// The role in which a template names an entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The name alone.
    Bare,
    /// With the definite article.
    The,
    /// After "of".
    Of,
    /// After "in".
    In,
    /// With the indefinite article.
    A,
}

/// Index of an [`Entity`] in its world.
pub type EntityId = usize;

/// A thing with a name in each language.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entity {
    /// What sort of thing it is.
    pub kind: Kind,
    /// Its name in English, French and Spanish; one word each.
    pub names: [String; 3],
    /// Its articles in French and Spanish.
    pub articles: [Article; 2],
}

impl Entity {
    /// The name in `lang`.
    pub fn name(&self, lang: Lang) -> &str {
        &self.names[lang as usize]
    }

    /// The words that `form` puts before the name, with the space that follows them.
    pub(super) fn prefix(&self, lang: Lang, form: Form) -> &'static str {
        match lang {
            Lang::English => match form {
                Form::Bare => "",
                Form::The => "the ",
                Form::Of => "of ",
                Form::In => "in ",
                Form::A => "a ",
            },
            Lang::French => french(self.articles[0], form),
            Lang::Spanish => spanish(self.articles[1], form),
        }
    }
}

fn french(article: Article, form: Form) -> &'static str {
    use Article::{Bare, Elided, ElidedFeminine, Feminine, Masculine};
    match (form, article) {
        (Form::Bare, _) | (Form::The, Bare) => "",
        (Form::The, Masculine) => "le ",
        (Form::The, Feminine) => "la ",
        (Form::The, Elided | ElidedFeminine) => "l'",
        (Form::Of, Masculine) => "du ",
        (Form::Of, Feminine) => "de la ",
        (Form::Of, Elided | ElidedFeminine) => "de l'",
        (Form::Of, Bare) => "de ",
        (Form::In, Masculine) => "au ",
        (Form::In, Bare) => "à ",
        (Form::In, _) => "en ",
        (Form::A, Feminine | ElidedFeminine) => "une ",
        (Form::A, _) => "un ",
    }
}

fn spanish(article: Article, form: Form) -> &'static str {
    use Article::{Bare, Feminine, Masculine};
    match (form, article) {
        (Form::Bare, _) | (Form::The, Bare) => "",
        (Form::The, Feminine) => "la ",
        (Form::The, _) => "el ",
        (Form::Of, Masculine) => "del ",
        (Form::Of, Feminine) => "de la ",
        (Form::Of, _) => "de ",
        (Form::In, _) => "en ",
        (Form::A, Feminine) => "una ",
        (Form::A, _) => "un ",
    }
}
