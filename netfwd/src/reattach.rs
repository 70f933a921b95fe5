//! Underlays that are deleted under a running gateway and come back.
//!
//! A driver that is reloaded, a port of a virtual machine that is plugged again, a namespace that an interface visits:
//! afterwards there is a new interface of the old name, without XDP, and the AF_XDP sockets are dead. Packets still arrive,
//! by the kernel's sockets, so the gateway stays healthy; but it would be slow until somebody restarted it.
//!
//! So the control thread asks the sockets once a second whether their interface is gone, and while one is, looks for
//! another of its name that is up. `netfwd_xsk_mode_info` says `off` in between, and the log says both, once.
//!
//! Deliberately absent: listening to netlink's link events. They can be lost, and an interface that moves through a
//! namespace keeps its index; the sockets know. Underlays that started without XDP are not tried again.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::control::links::{Link, Netlink};
use crate::order::{Order, Orders};
use crate::underlay::{Underlay, UnderlayError};
use crate::wireguard::steering::Underlays;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Most looks that are left out after refusals, as a power of two: a quarter of a minute.
const MOST_PATIENT: u32 = 4;

/// Looks after `underlays` for ever; a change of an underlay's queue *i* is told to `workers[i]`.
pub async fn watch(underlays: Underlays, workers: Vec<Orders>) {
    let netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(error) => return warn!("underlays that are deleted will not be attached again: netlink: {error}"),
    };
    let count = lock(&underlays).len();
    let mut absences = vec![Absence::default(); count];
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        note_losses(&mut lock(&underlays), &workers);
        if !lock(&underlays).iter().any(Underlay::is_detached) {
            continue;
        }
        // Netlink that does not answer now may do so in a second.
        let Ok(links) = netlink.links().await else { continue };
        for (index, (underlay, absence)) in lock(&underlays).iter_mut().zip(&mut absences).enumerate() {
            let back = links.iter().find(|link| link.up && link.name == underlay.interface());
            if underlay.is_detached()
                && let Some(link) = back
                && absence.is_over()
            {
                absence.note(attach(index, underlay, link, &workers));
            }
        }
    }
}

/// The underlays, for a moment.
pub fn lock(underlays: &Underlays) -> MutexGuard<'_, Vec<Underlay>> {
    underlays.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note_losses(underlays: &mut [Underlay], workers: &[Orders]) {
    for (index, underlay) in underlays.iter_mut().enumerate().filter(|(_, underlay)| underlay.has_lost_interface()) {
        warn!("underlay {}: the interface is gone; kernel sockets only until it is back", underlay.interface());
        give_up(index, underlay, workers);
    }
}

fn give_up(index: usize, underlay: &mut Underlay, workers: &[Orders]) {
    underlay.detach();
    for worker in workers {
        worker.give(Order::QueueLost { underlay: index });
    }
}

/// Attaches, and hands each worker its socket.
fn attach(index: usize, underlay: &mut Underlay, link: &Link, workers: &[Orders]) -> Result<(), UnderlayError> {
    let queues = underlay.attach(link)?;
    let hear =
        |(worker, queue): (&Orders, _)| worker.give(Order::QueueAttached { underlay: index, queue: Box::new(queue) });
    if !workers.iter().zip(queues).all(hear) {
        // A worker that is stuck would let its ring run full, and XDP would drop what the kernel's sockets may still get.
        info!("underlay {}: a worker does not take its queue; kernel sockets only", underlay.interface());
        give_up(index, underlay, workers);
    }
    Ok(())
}

/// How an interface that is back but refuses is tried: at once, then ever more rarely.
#[derive(Clone, Debug, Default)]
struct Absence {
    refusals: u32,
    looks_to_skip: u32,
}

impl Absence {
    /// Whether it is time to try; called once a look.
    fn is_over(&mut self) -> bool {
        let over = self.looks_to_skip == 0;
        self.looks_to_skip = self.looks_to_skip.saturating_sub(1);
        over
    }

    fn note(&mut self, outcome: Result<(), UnderlayError>) {
        let Err(error) = outcome else { return *self = Self::default() };
        if self.refusals == 0 {
            warn!("an underlay is back, but the kernel's sockets have to do: {error}");
        }
        self.refusals += 1;
        self.looks_to_skip = (1 << self.refusals.min(MOST_PATIENT)) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal() -> UnderlayError {
        UnderlayError::Channels { interface: "eth0".to_owned(), source: std::io::ErrorKind::Other.into() }
    }

    /// Looks between the first try and the n-th.
    fn tries(looks: usize) -> Vec<usize> {
        let mut absence = Absence::default();
        let mut tried = Vec::new();
        for look in 0..looks {
            if absence.is_over() {
                tried.push(look);
                absence.note(Err(refusal()));
            }
        }
        tried
    }

    #[test]
    fn an_interface_that_refuses_is_tried_ever_more_rarely_but_never_given_up() {
        assert_eq!(tries(70), [0, 2, 6, 14, 30, 46, 62]);
    }

    #[test]
    fn after_a_success_the_next_loss_is_cured_at_once() {
        let mut absence = Absence { refusals: 5, looks_to_skip: 0 };
        absence.note(Ok(()));
        assert!(absence.is_over() && absence.is_over());
    }
}
