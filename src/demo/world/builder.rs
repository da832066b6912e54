//! What is true in the world: entities, the facts of one hop about them, and those of two hops that follow.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use rand::seq::SliceRandom;

use super::super::atlas::{CONTINENTS, COUNTRIES, LANGUAGES, TRANSLATED_CURRENCIES};
use super::super::entity::{Article, Entity, EntityId, Kind};
use super::super::lexicon::{ANIMALS, COLOURS, JOBS, OPPOSITES, invented_name};
use super::super::relation::Relation;
use super::{Fact, PEOPLE};
use crate::base::rng::stream;
/// Collects entities and one-hop facts.
#[derive(Default)]
pub(super) struct Builder {
    pub(super) entities: Vec<Entity>,
    pub(super) facts: Vec<Fact>,
    ids: BTreeMap<(Kind, String), EntityId>,
}

impl Builder {
    fn add(&mut self, kind: Kind, names: [&str; 3], articles: [Article; 2]) -> EntityId {
        let id = self.entities.len();
        self.entities.push(Entity { kind, names: names.map(str::to_owned), articles });
        self.ids.insert((kind, names[0].to_owned()), id);
        id
    }

    fn plain(&mut self, kind: Kind, names: [&str; 3]) -> EntityId {
        self.add(kind, names, [Article::Bare, Article::Bare])
    }

    /// The entity of this English name, added under that name in every language if it is new.
    fn get(&mut self, kind: Kind, english: &str) -> EntityId {
        match self.ids.get(&(kind, english.to_owned())) {
            Some(&id) => id,
            None => self.plain(kind, [english; 3]),
        }
    }

    fn fact(&mut self, relation: Relation, subject: EntityId, object: EntityId) {
        self.facts.push(Fact { relation, subject, addend: None, object, held_out: false });
    }

    pub(super) fn geography(&mut self) {
        for &names in CONTINENTS {
            self.plain(Kind::Continent, names);
        }
        for &names in LANGUAGES {
            self.plain(Kind::Language, names);
        }
        for &names in TRANSLATED_CURRENCIES {
            self.plain(Kind::Currency, names);
        }
        for row in COUNTRIES {
            let country = self.add(Kind::Country, row.names, [row.french, Article::Bare]);
            let continent = self.get(Kind::Continent, row.continent);
            let language = self.get(Kind::Language, row.language);
            let currency = self.get(Kind::Currency, row.currency);
            self.fact(Relation::Continent, country, continent);
            self.fact(Relation::Language, country, language);
            self.fact(Relation::Currency, country, currency);
            for (i, city) in row.cities.into_iter().enumerate() {
                let city = self.plain(Kind::City, [city; 3]);
                self.fact(Relation::CityCountry, city, country);
                if i == 0 {
                    self.fact(Relation::Capital, country, city);
                    self.fact(Relation::CapitalOf, city, country);
                }
            }
        }
    }

    pub(super) fn words(&mut self) {
        for &[left, right] in OPPOSITES {
            let (left, right) = (self.plain(Kind::Adjective, left), self.plain(Kind::Adjective, right));
            self.fact(Relation::Opposite, left, right);
            self.fact(Relation::Opposite, right, left);
        }
        for &names in COLOURS {
            self.plain(Kind::Colour, names);
        }
        for row in ANIMALS {
            let animal = self.add(Kind::Animal, row.names, row.articles);
            let colour = self.get(Kind::Colour, row.colour);
            let size = self.get(Kind::Adjective, row.size);
            self.fact(Relation::Colour, animal, colour);
            self.fact(Relation::Size, animal, size);
        }
        for id in 0..self.entities.len() {
            if matches!(self.entities[id].kind, Kind::Adjective | Kind::Colour | Kind::Animal) {
                self.fact(Relation::ToFrench, id, id);
                self.fact(Relation::ToSpanish, id, id);
            }
        }
    }

    pub(super) fn people(&mut self, seed: u64) {
        let mut rng = stream(seed, "demo/people");
        let taken: BTreeSet<String> =
            self.entities.iter().flat_map(|e| &e.names).map(|name| name.to_lowercase()).collect();
        let mut names = BTreeSet::new();
        while names.len() < PEOPLE {
            let name = invented_name(&mut rng);
            if !taken.contains(&name.to_lowercase()) {
                names.insert(name);
            }
        }
        let people: Vec<EntityId> = names.iter().map(|name| self.get(Kind::Person, name)).collect();
        let jobs: Vec<EntityId> = JOBS.iter().map(|&names| self.plain(Kind::Job, names)).collect();
        let of_kind = |builder: &Self, kind| -> Vec<EntityId> {
            (0..builder.entities.len()).filter(|&id| builder.entities[id].kind == kind).collect()
        };
        let (mut cities, mut animals) = (of_kind(self, Kind::City), of_kind(self, Kind::Animal));
        cities.shuffle(&mut rng);
        animals.shuffle(&mut rng);
        let mut circle = people.clone();
        circle.shuffle(&mut rng);
        for (i, &person) in people.iter().enumerate() {
            self.fact(Relation::Job, person, jobs[rng.random_range(0..jobs.len())]);
            self.fact(Relation::Town, person, cities[i % cities.len()]);
            self.fact(Relation::Pet, person, animals[i % animals.len()]);
        }
        // One circle through everybody: nobody is their own best friend, nor the best friend's best friend.
        for (i, &person) in circle.iter().enumerate() {
            self.fact(Relation::Friend, person, circle[(i + 1) % circle.len()]);
        }
    }

    pub(super) fn sums(&mut self) {
        let numbers: Vec<EntityId> = (0..=18).map(|n: u32| self.get(Kind::Number, &n.to_string())).collect();
        for a in 0..10 {
            for b in 0..10 {
                let (subject, object) = (numbers[a], numbers[a + b]);
                self.facts.push(Fact {
                    relation: Relation::Sum,
                    subject,
                    addend: Some(numbers[b]),
                    object,
                    held_out: false,
                });
            }
        }
    }
}

/// Appends the two-hop facts that follow from the one-hop facts. Capitals are subjects of the relations about
/// capitals, other cities of those about cities.
pub(super) fn compose(facts: &mut Vec<Fact>) {
    let one_hop: BTreeMap<(Relation, EntityId), EntityId> =
        facts.iter().filter(|f| f.addend.is_none()).map(|f| ((f.relation, f.subject), f.object)).collect();
    let city_relations =
        [Relation::CityCapital, Relation::CityLanguage, Relation::CityCurrency, Relation::CityContinent];
    for &relation in Relation::ALL {
        let [first, second] = relation.hops() else { continue };
        for (&(hop, subject), middle) in &one_hop {
            let capital = one_hop.contains_key(&(Relation::CapitalOf, subject));
            if hop != *first || (capital && city_relations.contains(&relation)) {
                continue;
            }
            if let Some(&object) = one_hop.get(&(*second, *middle)) {
                facts.push(Fact { relation, subject, addend: None, object, held_out: false });
            }
        }
    }
}
