//! Animals, colours, jobs, adjectives and their opposites in English, French and Spanish, and invented people.

use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::entity::Article;

/// An animal: names, French article, Spanish article, colour and size (English adjectives).
pub(super) struct AnimalRow {
    /// Names in English, French and Spanish.
    pub(super) names: [&'static str; 3],
    /// Articles in French and Spanish.
    pub(super) articles: [Article; 2],
    /// English name of its colour.
    pub(super) colour: &'static str,
    /// English adjective of its size.
    pub(super) size: &'static str,
}

macro_rules! animals {
    ($($en:literal $fr:literal $f:ident $es:literal $s:ident $colour:literal $size:literal;)*) => {
        &[$(AnimalRow {
            names: [$en, $fr, $es],
            articles: [Article::$f, Article::$s],
            colour: $colour,
            size: $size,
        },)*]
    };
}

/// The animals. None begins with a vowel in English, so that "a" fits them all.
pub(super) const ANIMALS: &[AnimalRow] = animals! {
    "dog" "chien" Masculine "perro" Masculine "brown" "big";
    "cat" "chat" Masculine "gato" Masculine "grey" "small";
    "horse" "cheval" Masculine "caballo" Masculine "brown" "huge";
    "cow" "vache" Feminine "vaca" Feminine "white" "huge";
    "sheep" "mouton" Masculine "oveja" Feminine "white" "big";
    "goat" "chèvre" Feminine "cabra" Feminine "grey" "big";
    "pig" "cochon" Masculine "cerdo" Masculine "pink" "big";
    "rabbit" "lapin" Masculine "conejo" Masculine "white" "small";
    "mouse" "souris" Feminine "ratón" Masculine "grey" "tiny";
    "duck" "canard" Masculine "pato" Masculine "green" "small";
    "goose" "oie" ElidedFeminine "ganso" Masculine "white" "small";
    "swan" "cygne" Masculine "cisne" Masculine "black" "big";
    "fox" "renard" Masculine "zorro" Masculine "red" "big";
    "wolf" "loup" Masculine "lobo" Masculine "grey" "big";
    "bear" "ours" Elided "oso" Masculine "brown" "huge";
    "lion" "lion" Masculine "león" Masculine "yellow" "huge";
    "camel" "chameau" Masculine "camello" Masculine "yellow" "huge";
    "snake" "serpent" Masculine "serpiente" Feminine "green" "big";
    "frog" "grenouille" Feminine "rana" Feminine "green" "tiny";
    "turtle" "tortue" Feminine "tortuga" Feminine "green" "small";
    "parrot" "perroquet" Masculine "loro" Masculine "blue" "small";
    "hawk" "faucon" Masculine "halcón" Masculine "brown" "small";
    "crow" "corbeau" Masculine "cuervo" Masculine "black" "small";
    "bee" "abeille" ElidedFeminine "abeja" Feminine "yellow" "tiny";
    "beetle" "scarabée" Masculine "escarabajo" Masculine "black" "tiny";
    "crab" "crabe" Masculine "cangrejo" Masculine "red" "tiny";
    "whale" "baleine" Feminine "ballena" Feminine "blue" "huge";
    "trout" "truite" Feminine "trucha" Feminine "pink" "small";
};

/// Colours in English, French and Spanish.
pub(super) const COLOURS: &[[&str; 3]] = &[
    ["black", "noir", "negro"],
    ["white", "blanc", "blanco"],
    ["brown", "brun", "marrón"],
    ["grey", "gris", "gris"],
    ["red", "rouge", "rojo"],
    ["green", "vert", "verde"],
    ["yellow", "jaune", "amarillo"],
    ["blue", "bleu", "azul"],
    ["pink", "rose", "rosa"],
];

/// Jobs in English, French and Spanish. None begins with a vowel in English.
pub(super) const JOBS: &[[&str; 3]] = &[
    ["baker", "boulanger", "panadero"],
    ["teacher", "professeur", "profesor"],
    ["doctor", "médecin", "médico"],
    ["farmer", "fermier", "granjero"],
    ["painter", "peintre", "pintor"],
    ["sailor", "marin", "marinero"],
    ["singer", "chanteur", "cantante"],
    ["tailor", "tailleur", "sastre"],
    ["miller", "meunier", "molinero"],
    ["judge", "juge", "juez"],
    ["poet", "poète", "poeta"],
    ["potter", "potier", "alfarero"],
    ["carpenter", "charpentier", "carpintero"],
    ["weaver", "tisserand", "tejedor"],
    ["gardener", "jardinier", "jardinero"],
];

/// Pairs of opposite adjectives, each in English, French and Spanish.
pub(super) const OPPOSITES: &[[[&str; 3]; 2]] = &[
    [["big", "grand", "grande"], ["small", "petit", "pequeño"]],
    [["huge", "énorme", "enorme"], ["tiny", "minuscule", "diminuto"]],
    [["hot", "chaud", "caliente"], ["cold", "froid", "frío"]],
    [["fast", "rapide", "rápido"], ["slow", "lent", "lento"]],
    [["old", "vieux", "viejo"], ["new", "neuf", "nuevo"]],
    [["light", "clair", "claro"], ["dark", "sombre", "oscuro"]],
    [["wet", "mouillé", "mojado"], ["dry", "sec", "seco"]],
    [["hard", "dur", "duro"], ["soft", "mou", "blando"]],
    [["full", "plein", "lleno"], ["empty", "vide", "vacío"]],
    [["rich", "riche", "rico"], ["poor", "pauvre", "pobre"]],
    [["strong", "fort", "fuerte"], ["weak", "faible", "débil"]],
    [["high", "haut", "alto"], ["low", "bas", "bajo"]],
    [["open", "ouvert", "abierto"], ["closed", "fermé", "cerrado"]],
    [["clean", "propre", "limpio"], ["dirty", "sale", "sucio"]],
    [["near", "proche", "cercano"], ["far", "lointain", "lejano"]],
    [["early", "tôt", "temprano"], ["late", "tard", "tarde"]],
    [["sweet", "doux", "dulce"], ["bitter", "amer", "amargo"]],
    [["true", "vrai", "verdadero"], ["false", "faux", "falso"]],
    [["good", "bon", "bueno"], ["bad", "mauvais", "malo"]],
    [["thick", "épais", "grueso"], ["thin", "mince", "fino"]],
];

const ONSETS: &[&str] = &["B", "D", "F", "J", "K", "L", "M", "N", "P", "R", "S", "T", "V", "Z", "Br", "Dr", "Tr", "Kl"];
const MIDDLES: &[&str] = &["l", "m", "n", "r", "v", "z", "ld", "nd", "rv", "st", "lk", "sh"];
const VOWELS: &[&str] = &["a", "e", "i", "o", "u"];
const ENDINGS: &[&str] = &["a", "o", "e", "ik", "un", "or", "el", "us", "in", "ath"];

/// An invented first name of two syllables.
pub(super) fn invented_name(rng: &mut ChaCha8Rng) -> String {
    [ONSETS, VOWELS, MIDDLES, ENDINGS].iter().filter_map(|part| part.choose(rng)).copied().collect()
}
