//! How entities hang together: relations of one hop, and those of two hops made from them.

use super::entity::Lang;

macro_rules! relations {
    ($($(#[$doc:meta])* $variant:ident $name:literal [$($hop:ident),*],)*) => {
        /// What a fact says. A two-hop relation is the composition of its [`Relation::hops`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Relation { $($(#[$doc])* $variant,)* }

        impl Relation {
            /// Every relation.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name in reports.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// The one-hop relations to follow from subject to object; empty for a one-hop relation.
            pub const fn hops(self) -> &'static [Self] {
                match self { $(Self::$variant => &[$(Self::$hop),*]),* }
            }
        }
    };
}

relations! {
    /// Country to capital.
    Capital "capital" [],
    /// Capital to country.
    CapitalOf "capital-of" [],
    /// City to country.
    CityCountry "city-country" [],
    /// Country to language.
    Language "language" [],
    /// Country to currency.
    Currency "currency" [],
    /// Country to continent.
    Continent "continent" [],
    /// Person to job.
    Job "job" [],
    /// Person to home town.
    Town "town" [],
    /// Person to animal.
    Pet "pet" [],
    /// Person to best friend.
    Friend "friend" [],
    /// Animal to colour.
    Colour "colour" [],
    /// Animal to size.
    Size "size" [],
    /// Adjective to its opposite.
    Opposite "opposite" [],
    /// English word to French word.
    ToFrench "to-french" [],
    /// English word to Spanish word.
    ToSpanish "to-spanish" [],
    /// Two numbers to their sum.
    Sum "sum" [],
    /// City to the capital of its country.
    CityCapital "city-capital" [CityCountry, Capital],
    /// City to the language of its country.
    CityLanguage "city-language" [CityCountry, Language],
    /// City to the currency of its country.
    CityCurrency "city-currency" [CityCountry, Currency],
    /// City to the continent of its country.
    CityContinent "city-continent" [CityCountry, Continent],
    /// Capital to the language of its country.
    CapitalLanguage "capital-language" [CapitalOf, Language],
    /// Capital to the currency of its country.
    CapitalCurrency "capital-currency" [CapitalOf, Currency],
    /// Capital to the continent of its country.
    CapitalContinent "capital-continent" [CapitalOf, Continent],
    /// Person to the country of the home town.
    PersonCountry "person-country" [Town, CityCountry],
    /// Person to the colour of the animal.
    PetColour "pet-colour" [Pet, Colour],
    /// Person to the size of the animal.
    PetSize "pet-size" [Pet, Size],
    /// Person to the best friend's job.
    FriendJob "friend-job" [Friend, Job],
    /// Person to the best friend's home town.
    FriendTown "friend-town" [Friend, Town],
    /// Animal to the opposite of its size.
    SizeOpposite "size-opposite" [Size, Opposite],
    /// English adjective to the French word for its opposite.
    OppositeFrench "opposite-french" [Opposite, ToFrench],
    /// English adjective to the Spanish word for its opposite.
    OppositeSpanish "opposite-spanish" [Opposite, ToSpanish],
}

impl Relation {
    /// One or two.
    pub const fn hop_count(self) -> usize {
        if self.hops().is_empty() { 1 } else { 2 }
    }

    /// The language of the object's name in a sentence of `lang`.
    pub const fn object_lang(self, lang: Lang) -> Lang {
        match self {
            Self::ToFrench | Self::OppositeFrench => Lang::French,
            Self::ToSpanish | Self::OppositeSpanish => Lang::Spanish,
            _ => lang,
        }
    }
}
