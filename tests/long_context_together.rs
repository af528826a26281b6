//! Networks with a long context that step together: each gives the bits it gives alone.

mod support;

use support::tiny::{
    Frozen, ORIGIN_NS, batches, drive, freeze, network, network_config, sizes, weights,
};
use umm::backend::cpu::{Cpu, Path};
use umm::model::adapter::TokenBatch;
use umm::model::network::{LaneStep, Network, TickMoment, step_together};
use umm::model::stage::NoProbe;

const LANES: usize = 3;
const TICKS: usize = 60;

/// A lane's digests at each tick, and its whole state at the end.
#[derive(PartialEq)]
struct Said {
    digests: Vec<[u64; 4]>,
    state: Frozen,
}

impl Said {
    fn at_the_end(digests: Vec<[u64; 4]>, network: &mut Network) -> Said {
        let state = freeze(network);
        Said { digests, state }
    }
}

type Ticks = Vec<(TickMoment, TokenBatch)>;

/// Epochs that began at different times: the lanes' rotary angles differ.
fn origin_ns(lane: usize) -> i64 {
    ORIGIN_NS - lane as i64 * 1_234_567_891
}

/// Whether a lane has a tick in a round: each sits out every fourth, so that lanes change places.
fn comes(lane: usize, round: usize) -> bool {
    !(round + lane).is_multiple_of(4)
}

fn alone(ticks: &Ticks, lane: usize, context: usize, path: Path) -> Said {
    let mut network = network(&weights(Some(sizes(3, 2, 2))), context, path);
    network.begin_epoch(origin_ns(lane));
    let mut digests = Vec::new();
    for (moment, batch) in ticks {
        network.step(moment, batch, &mut NoProbe).unwrap();
        digests.push(network.outputs().digests);
    }
    Said::at_the_end(digests, &mut network)
}

fn together(ticks: &[Ticks], context: usize, path: Path) -> Vec<Said> {
    let weights = weights(Some(sizes(3, 2, 2)));
    let backend = Box::new(Cpu::new(path));
    let mut networks =
        Network::together(&weights, network_config(context), backend, LANES).unwrap();
    for (lane, network) in networks.iter_mut().enumerate() {
        network.begin_epoch(origin_ns(lane));
    }
    let mut left: Vec<_> = ticks.iter().map(|ticks| ticks.iter()).collect();
    let mut digests = vec![Vec::new(); LANES];
    for round in 0.. {
        if left.iter().all(|ticks| ticks.len() == 0) {
            break;
        }
        let mut steps = Vec::new();
        let mut stepped = Vec::new();
        for (lane, network) in networks.iter_mut().enumerate() {
            let tick = comes(lane, round).then(|| left[lane].next()).flatten();
            if let Some((moment, batch)) = tick {
                steps.push(LaneStep {
                    network,
                    moment: *moment,
                    batch,
                });
                stepped.push(lane);
            }
        }
        step_together(&mut steps, &mut NoProbe).unwrap();
        for (step, lane) in steps.iter().zip(stepped) {
            digests[lane].push(step.network.outputs().digests);
        }
    }
    let lanes = digests.into_iter().zip(&mut networks);
    lanes
        .map(|(digests, network)| Said::at_the_end(digests, network))
        .collect()
}

#[test]
fn each_lane_is_as_alone() {
    let spec = weights(None).spec;
    let drives = (0..LANES as u64).map(|lane| drive(41 + lane, TICKS + 7 * lane as usize));
    let ticks: Vec<Ticks> = drives.map(|drive| batches(&drive, &spec)).collect();
    for path in [Path::Plain, Path::Fast] {
        let together = together(&ticks, 24, path);
        for (lane, together) in together.iter().enumerate() {
            let alone_with = alone(&ticks[lane], lane, 24, path);
            assert_eq!(
                together.digests, alone_with.digests,
                "lane {lane}, {path:?}"
            );
            assert!(
                together.state == alone_with.state,
                "lane {lane}, {path:?}: the states differ"
            );
            let without = alone(&ticks[lane], lane, 0, path);
            assert_ne!(
                together.digests, without.digests,
                "lane {lane} has no long context"
            );
        }
    }
}
