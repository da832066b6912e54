//! The built-in world: facts that a generator knows, text that states them, and a small model that learned them.
//!
//! Because the generator knows what every token means, the pipeline can be scored here as on no real model:
//! [`quiz`] asks the model its facts, [`score`] says how well features match [`concepts`], [`turn`] how often
//! turning a feature turns the answer.

mod atlas;
pub mod built_in;
pub mod card;
pub mod carry;
pub mod compose;
pub mod concepts;
pub mod corpus;
pub mod entity;
mod grammar;
mod lexicon;
pub mod quiz;
pub mod relation;
pub mod score;
pub mod stands;
pub mod tokenizer;
pub mod trace_card;
pub mod turn;
pub mod world;

pub use concepts::{Concept, ConceptId, ConceptKind, Labeller, Labels};
pub use entity::{Entity, EntityId, Kind, Lang};
pub use relation::Relation;
pub use tokenizer::Vocabulary;
pub use world::{Fact, Prompt, World};
