//! Real geography: countries with their names in English, French and Spanish, and four cities each.
//!
//! Every name is one word. Cities keep their English spelling in all three languages, and accents are left out of
//! city names, so that a city is one token everywhere.

use super::entity::Article;

/// A country as the generator knows it.
pub(super) struct CountryRow {
    /// Names in English, French and Spanish.
    pub(super) names: [&'static str; 3],
    /// The article that French puts before the name.
    pub(super) french: Article,
    /// English name of the continent.
    pub(super) continent: &'static str,
    /// English name of the language.
    pub(super) language: &'static str,
    /// English name of the currency.
    pub(super) currency: &'static str,
    /// The capital, then three other cities.
    pub(super) cities: [&'static str; 4],
}

macro_rules! countries {
    ($($en:literal $fr:literal $es:literal $article:ident, $continent:literal $language:literal $currency:literal,
       $c0:literal $c1:literal $c2:literal $c3:literal;)*) => {
        &[$(CountryRow {
            names: [$en, $fr, $es],
            french: Article::$article,
            continent: $continent,
            language: $language,
            currency: $currency,
            cities: [$c0, $c1, $c2, $c3],
        },)*]
    };
}

/// The countries of the world.
pub(super) const COUNTRIES: &[CountryRow] = countries! {
    "France" "France" "Francia" Feminine, "Europe" "French" "euro", "Paris" "Lyon" "Marseille" "Toulouse";
    "Germany" "Allemagne" "Alemania" Elided, "Europe" "German" "euro", "Berlin" "Munich" "Hamburg" "Cologne";
    "Italy" "Italie" "Italia" Elided, "Europe" "Italian" "euro", "Rome" "Milan" "Naples" "Turin";
    "Spain" "Espagne" "España" Elided, "Europe" "Spanish" "euro", "Madrid" "Barcelona" "Seville" "Valencia";
    "Portugal" "Portugal" "Portugal" Masculine, "Europe" "Portuguese" "euro", "Lisbon" "Porto" "Braga" "Coimbra";
    "Poland" "Pologne" "Polonia" Feminine, "Europe" "Polish" "zloty", "Warsaw" "Krakow" "Gdansk" "Poznan";
    "Austria" "Autriche" "Austria" Elided, "Europe" "German" "euro", "Vienna" "Graz" "Linz" "Salzburg";
    "Hungary" "Hongrie" "Hungría" Feminine, "Europe" "Hungarian" "forint", "Budapest" "Debrecen" "Szeged" "Pecs";
    "Greece" "Grèce" "Grecia" Feminine, "Europe" "Greek" "euro", "Athens" "Patras" "Larissa" "Volos";
    "Sweden" "Suède" "Suecia" Feminine, "Europe" "Swedish" "krona", "Stockholm" "Gothenburg" "Malmo" "Uppsala";
    "Norway" "Norvège" "Noruega" Feminine, "Europe" "Norwegian" "krone", "Oslo" "Bergen" "Trondheim" "Stavanger";
    "Finland" "Finlande" "Finlandia" Feminine, "Europe" "Finnish" "euro", "Helsinki" "Tampere" "Turku" "Oulu";
    "Denmark" "Danemark" "Dinamarca" Masculine, "Europe" "Danish" "krone", "Copenhagen" "Aarhus" "Odense" "Aalborg";
    "Ireland" "Irlande" "Irlanda" Elided, "Europe" "English" "euro", "Dublin" "Cork" "Galway" "Limerick";
    "Belgium" "Belgique" "Bélgica" Feminine, "Europe" "Dutch" "euro", "Brussels" "Antwerp" "Ghent" "Bruges";
    "Switzerland" "Suisse" "Suiza" Feminine, "Europe" "German" "franc", "Bern" "Zurich" "Geneva" "Basel";
    "Romania" "Roumanie" "Rumania" Feminine, "Europe" "Romanian" "leu", "Bucharest" "Cluj" "Iasi" "Brasov";
    "Bulgaria" "Bulgarie" "Bulgaria" Feminine, "Europe" "Bulgarian" "lev", "Sofia" "Plovdiv" "Varna" "Burgas";
    "Ukraine" "Ukraine" "Ucrania" Elided, "Europe" "Ukrainian" "hryvnia", "Kyiv" "Lviv" "Odesa" "Kharkiv";
    "Croatia" "Croatie" "Croacia" Feminine, "Europe" "Croatian" "euro", "Zagreb" "Split" "Rijeka" "Zadar";
    "Serbia" "Serbie" "Serbia" Feminine, "Europe" "Serbian" "dinar", "Belgrade" "Nis" "Subotica" "Kragujevac";
    "Czechia" "Tchéquie" "Chequia" Feminine, "Europe" "Czech" "koruna", "Prague" "Brno" "Ostrava" "Olomouc";
    "Iceland" "Islande" "Islandia" Elided, "Europe" "Icelandic" "krona", "Reykjavik" "Akureyri" "Selfoss" "Keflavik";
    "Russia" "Russie" "Rusia" Feminine, "Europe" "Russian" "ruble", "Moscow" "Kazan" "Samara" "Omsk";
    "Japan" "Japon" "Japón" Masculine, "Asia" "Japanese" "yen", "Tokyo" "Osaka" "Kyoto" "Nagoya";
    "China" "Chine" "China" Feminine, "Asia" "Chinese" "yuan", "Beijing" "Shanghai" "Wuhan" "Chengdu";
    "India" "Inde" "India" Elided, "Asia" "Hindi" "rupee", "Delhi" "Mumbai" "Chennai" "Kolkata";
    "Thailand" "Thaïlande" "Tailandia" Feminine, "Asia" "Thai" "baht", "Bangkok" "Phuket" "Pattaya" "Chonburi";
    "Vietnam" "Vietnam" "Vietnam" Masculine, "Asia" "Vietnamese" "dong", "Hanoi" "Hue" "Haiphong" "Danang";
    "Indonesia" "Indonésie" "Indonesia" Elided, "Asia" "Indonesian" "rupiah", "Jakarta" "Bandung" "Surabaya" "Medan";
    "Turkey" "Turquie" "Turquía" Feminine, "Asia" "Turkish" "lira", "Ankara" "Istanbul" "Izmir" "Bursa";
    "Iran" "Iran" "Irán" Elided, "Asia" "Persian" "rial", "Tehran" "Shiraz" "Isfahan" "Tabriz";
    "Iraq" "Irak" "Irak" Elided, "Asia" "Arabic" "dinar", "Baghdad" "Basra" "Mosul" "Erbil";
    "Mongolia" "Mongolie" "Mongolia" Feminine, "Asia" "Mongolian" "tugrik", "Ulaanbaatar" "Darkhan" "Erdenet" "Choibalsan";
    "Nepal" "Népal" "Nepal" Masculine, "Asia" "Nepali" "rupee", "Kathmandu" "Pokhara" "Lalitpur" "Bharatpur";
    "Pakistan" "Pakistan" "Pakistán" Masculine, "Asia" "Urdu" "rupee", "Islamabad" "Karachi" "Lahore" "Peshawar";
    "Egypt" "Égypte" "Egipto" Elided, "Africa" "Arabic" "pound", "Cairo" "Luxor" "Aswan" "Giza";
    "Morocco" "Maroc" "Marruecos" Masculine, "Africa" "Arabic" "dirham", "Rabat" "Casablanca" "Fez" "Tangier";
    "Kenya" "Kenya" "Kenia" Masculine, "Africa" "Swahili" "shilling", "Nairobi" "Mombasa" "Kisumu" "Nakuru";
    "Nigeria" "Nigeria" "Nigeria" Masculine, "Africa" "English" "naira", "Abuja" "Lagos" "Kano" "Ibadan";
    "Ghana" "Ghana" "Ghana" Masculine, "Africa" "English" "cedi", "Accra" "Kumasi" "Tamale" "Sunyani";
    "Senegal" "Sénégal" "Senegal" Masculine, "Africa" "French" "franc", "Dakar" "Thies" "Kaolack" "Ziguinchor";
    "Tanzania" "Tanzanie" "Tanzania" Feminine, "Africa" "Swahili" "shilling", "Dodoma" "Arusha" "Mwanza" "Tanga";
    "Angola" "Angola" "Angola" Elided, "Africa" "Portuguese" "kwanza", "Luanda" "Huambo" "Lobito" "Benguela";
    "Zambia" "Zambie" "Zambia" Feminine, "Africa" "English" "kwacha", "Lusaka" "Ndola" "Kitwe" "Livingstone";
    "Canada" "Canada" "Canadá" Masculine, "America" "English" "dollar", "Ottawa" "Toronto" "Montreal" "Vancouver";
    "Cuba" "Cuba" "Cuba" Bare, "America" "Spanish" "peso", "Havana" "Holguin" "Camaguey" "Matanzas";
    "Brazil" "Brésil" "Brasil" Masculine, "America" "Portuguese" "real", "Brasilia" "Recife" "Salvador" "Manaus";
    "Chile" "Chili" "Chile" Masculine, "America" "Spanish" "peso", "Santiago" "Valparaiso" "Concepcion" "Antofagasta";
    "Peru" "Pérou" "Perú" Masculine, "America" "Spanish" "sol", "Lima" "Cusco" "Arequipa" "Trujillo";
    "Colombia" "Colombie" "Colombia" Feminine, "America" "Spanish" "peso", "Bogota" "Medellin" "Cali" "Cartagena";
    "Ecuador" "Équateur" "Ecuador" Elided, "America" "Spanish" "dollar", "Quito" "Guayaquil" "Cuenca" "Loja";
    "Uruguay" "Uruguay" "Uruguay" Elided, "America" "Spanish" "peso", "Montevideo" "Salto" "Rivera" "Paysandu";
    "Venezuela" "Venezuela" "Venezuela" Masculine, "America" "Spanish" "bolivar", "Caracas" "Maracaibo" "Barquisimeto" "Maturin";
    "Australia" "Australie" "Australia" Elided, "Oceania" "English" "dollar", "Canberra" "Sydney" "Melbourne" "Perth";
    "Fiji" "Fidji" "Fiyi" Bare, "Oceania" "Fijian" "dollar", "Suva" "Nadi" "Lautoka" "Labasa";
};

/// Continents in English, French and Spanish.
pub(super) const CONTINENTS: &[[&str; 3]] = &[
    ["Europe", "Europe", "Europa"],
    ["Asia", "Asie", "Asia"],
    ["Africa", "Afrique", "África"],
    ["America", "Amérique", "América"],
    ["Oceania", "Océanie", "Oceanía"],
];

/// Languages in English, French and Spanish.
pub(super) const LANGUAGES: &[[&str; 3]] = &[
    ["English", "anglais", "inglés"],
    ["French", "français", "francés"],
    ["Spanish", "espagnol", "español"],
    ["German", "allemand", "alemán"],
    ["Italian", "italien", "italiano"],
    ["Portuguese", "portugais", "portugués"],
    ["Polish", "polonais", "polaco"],
    ["Hungarian", "hongrois", "húngaro"],
    ["Greek", "grec", "griego"],
    ["Swedish", "suédois", "sueco"],
    ["Norwegian", "norvégien", "noruego"],
    ["Finnish", "finnois", "finés"],
    ["Danish", "danois", "danés"],
    ["Dutch", "néerlandais", "neerlandés"],
    ["Romanian", "roumain", "rumano"],
    ["Bulgarian", "bulgare", "búlgaro"],
    ["Ukrainian", "ukrainien", "ucraniano"],
    ["Croatian", "croate", "croata"],
    ["Serbian", "serbe", "serbio"],
    ["Czech", "tchèque", "checo"],
    ["Icelandic", "islandais", "islandés"],
    ["Russian", "russe", "ruso"],
    ["Japanese", "japonais", "japonés"],
    ["Chinese", "chinois", "chino"],
    ["Hindi", "hindi", "hindi"],
    ["Thai", "thaï", "tailandés"],
    ["Vietnamese", "vietnamien", "vietnamita"],
    ["Indonesian", "indonésien", "indonesio"],
    ["Turkish", "turc", "turco"],
    ["Persian", "persan", "persa"],
    ["Arabic", "arabe", "árabe"],
    ["Mongolian", "mongol", "mongol"],
    ["Nepali", "népalais", "nepalí"],
    ["Urdu", "ourdou", "urdu"],
    ["Swahili", "swahili", "suajili"],
    ["Fijian", "fidjien", "fiyiano"],
];

/// Currencies whose name differs between the languages; every other currency has one name.
pub(super) const TRANSLATED_CURRENCIES: &[[&str; 3]] = &[
    ["krona", "couronne", "corona"],
    ["krone", "couronne", "corona"],
    ["koruna", "couronne", "corona"],
    ["franc", "franc", "franco"],
    ["ruble", "rouble", "rublo"],
    ["rupee", "roupie", "rupia"],
    ["pound", "livre", "libra"],
    ["dollar", "dollar", "dólar"],
];
