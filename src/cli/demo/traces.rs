//! The half of the demo's score card that graphs are measured in.

use crate::base::Result;
use crate::cli::render::{BOLD, DIM, Table, Ui, paint};
use crate::demo::compose::{SWAP_STRENGTH, THROUGH};
use crate::demo::trace_card::{SetCard, TraceCard};

pub(super) fn print(card: &TraceCard, ui: &Ui) -> Result<()> {
    let sets = [&card.per_layer, &card.cross_layer];
    ui.out(paint(BOLD, "Transcoders: what the model loses when it runs on them, and what its graphs show"))?;
    let mut table = Table::new(&["", ">one a layer", ">cross-layer", "what it is"]);
    let mut row = |name: &str, cell: &dyn Fn(&SetCard) -> String, what: &str| {
        table.row(vec![name.into(), cell(sets[0]), cell(sets[1]), paint(DIM, what)]);
    };
    row(
        "loss",
        &|s| format!("{:.3}", s.replacement.replaced.ce_loss),
        &format!(
            "nats a token with every MLP replaced; {:.3} without, {:.3} with means in their place",
            sets[0].replacement.clean_ce_loss, sets[0].replacement.ablated.ce_loss
        ),
    );
    row(
        "replacement score",
        &|s| format!("{:.3}", s.compositions.country.scores.replacement),
        "share of the influence on an answer that starts at tokens, not at errors",
    );
    row("completeness", &|s| format!("{:.3}", s.compositions.country.scores.completeness), "share of inputs explained");
    for (name, country) in [("through the country", true), ("through the friend", false)] {
        let of = |s: &SetCard| if country { s.compositions.country } else { s.compositions.friend };
        row(
            name,
            &|s| share(of(s).through, of(s).traced),
            &format!("two-hop questions whose graph has {:.0} % or more of its way there", THROUGH * 100.0),
        );
        row("  mean share", &|s| format!("{:.0} %", of(s).mean_share * 100.0), "of what reaches the answer");
        row("  turned without it", &|s| share(of(s).turned_without, of(s).through), "its features taken away");
        row("  turned by chance", &|s| share(of(s).turned_control, of(s).through), "as many other features taken away");
        let swap = format!("another question's at {SWAP_STRENGTH} x in their place: its answer comes");
        row("  follows", &|s| share(of(s).followed, of(s).swapped), &swap);
    }
    ui.out(table)?;
    let standing = sets.map(|s| s.compositions.standing);
    let seldom = sets.iter().all(|s| 2 * s.compositions.country.through < s.compositions.country.traced);
    let reading = if seldom {
        "Most countries are not one feature here but a mixture of several, so that most graphs do not show where the \
         answer to a city's question comes from."
    } else {
        "The country is in most graphs of a city's questions, as it should be where a model composes. Taking its features \
         away says little where others say the same; another country's in their place show whether they are the way."
    };
    ui.out(paint(
        DIM,
        format!(
            "{} and {} features stand for one country, person or animal. {reading} A friend's job is learnt by heart (pairs \
             kept out of training are answered wrongly), so the friend should be in no graph.",
            standing[0], standing[1]
        ),
    ))
}

fn share(part: usize, whole: usize) -> String {
    if whole == 0 { "–".into() } else { format!("{part} of {whole}") }
}
