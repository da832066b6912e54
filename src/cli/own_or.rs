//! Commands that do something of their own and have subcommands too, as `steer` and `steer vector`.

use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};

/// Arguments of the command itself, or a subcommand with its own. What the command requires, its subcommands need not.
#[derive(Debug)]
pub(super) enum OwnOr<O, A> {
    /// Those of the command.
    Own(Box<O>),
    /// A subcommand.
    Action(A),
}

impl<O: Args, A: Subcommand> FromArgMatches for OwnOr<O, A> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        match matches.subcommand_name() {
            Some(_) => A::from_arg_matches(matches).map(Self::Action),
            None => O::from_arg_matches(matches).map(|own| Self::Own(Box::new(own))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<O: Args, A: Subcommand> Args for OwnOr<O, A> {
    fn augment_args(command: Command) -> Command {
        A::augment_subcommands(O::augment_args(command))
            .subcommand_required(false)
            .arg_required_else_help(false)
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
