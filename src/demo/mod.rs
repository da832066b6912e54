//! The built-in world: facts that a generator knows, and text that states them.

mod atlas;
pub mod concepts;
pub mod corpus;
pub mod entity;
mod grammar;
mod lexicon;
pub mod relation;
pub mod score;
pub mod tokenizer;
pub mod world;

pub use concepts::{Concept, ConceptId, ConceptKind, Labeller, Labels};
pub use entity::{Entity, EntityId, Kind, Lang};
pub use relation::Relation;
pub use tokenizer::Vocabulary;
pub use world::{Fact, Prompt, World};
