//! Sinks that make their failures known to the run, each separately.

use super::{Channel, Output, Sink, SinkError};
use arrayvec::ArrayVec;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// Most different texts of one fault; all further ones show as the last of these.
const TEXTS: usize = 8;

/// What is wrong on another thread; the run reports it in its health. Reading it takes no lock.
#[derive(Clone, Debug, Default)]
pub struct Fault(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Filled from the front; each is set once.
    texts: [OnceLock<String>; TEXTS],
    /// One more than the index of the present text; 0 for none.
    now: AtomicUsize,
}

impl Fault {
    /// Sets what is wrong from now on. Only one thread may call it.
    pub fn set(&self, text: String) {
        let texts = &self.0.texts;
        let known = texts.iter().position(|t| t.get() == Some(&text));
        let free = || texts.iter().position(|t| t.get().is_none());
        let place = known.or_else(free).unwrap_or(TEXTS - 1);
        texts[place].get_or_init(|| text);
        self.0.now.store(place + 1, Ordering::Release);
    }

    /// Clears the fault.
    pub fn clear(&self) {
        self.0.now.store(0, Ordering::Release);
    }

    /// Returns what is wrong, if anything.
    pub fn get(&self) -> Option<&str> {
        let place = self.0.now.load(Ordering::Acquire).checked_sub(1)?;
        self.0.texts.get(place)?.get().map(String::as_str)
    }
}

/// A sink with a [`Fault`] that lasts until an output of every channel that failed has gone out again.
pub struct Watched<S> {
    sink: S,
    fault: Fault,
    failed: ArrayVec<Channel, { Channel::ALL.len() }>,
}

impl<S: Sink> Watched<S> {
    /// Watches `sink`.
    pub fn new(sink: S) -> Watched<S> {
        Watched {
            sink,
            fault: Fault::default(),
            failed: ArrayVec::new(),
        }
    }

    /// Returns its fault.
    pub fn fault(&self) -> Fault {
        self.fault.clone()
    }
}

impl<S: Sink> Sink for Watched<S> {
    fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
        let published = self.sink.publish(output);
        match &published {
            // The fault already says why the file was closed.
            Err(SinkError::Closed { .. }) if !self.failed.is_empty() => {}
            Err(error) => {
                self.fault.set(format!("outputs: {error}"));
                if !self.failed.contains(&output.channel) {
                    self.failed.push(output.channel);
                }
            }
            Ok(()) if !self.failed.is_empty() => {
                self.failed.retain(|failed| *failed != output.channel);
                if self.failed.is_empty() {
                    self.fault.clear();
                }
            }
            Ok(()) => {}
        }
        published
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        self.sink.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    /// Fails for keyframes and thumbnails only, while told to.
    struct Full(Arc<AtomicBool>);

    impl Sink for Full {
        fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
            let fails = matches!(output.channel, Channel::Keyframe | Channel::Thumbnail);
            match self.0.load(Ordering::Relaxed) && fails {
                true => Err(SinkError::Transport("no space".to_owned())),
                false => Ok(()),
            }
        }
        fn finish(&mut self) -> Result<(), SinkError> {
            Ok(())
        }
    }

    #[test]
    fn a_fault_lasts_until_the_same_goes_out_again() {
        let full = Arc::new(AtomicBool::new(false));
        let mut sink = Watched::new(Full(Arc::clone(&full)));
        let fault = sink.fault();
        let mut publish = |channel| {
            let output = Output {
                channel,
                publish_time_ns: 0,
                about_time_ns: 0,
                payload: &[],
            };
            let _ = sink.publish(&output);
            fault.get().map(str::to_owned)
        };
        assert_eq!(publish(Channel::Keyframe), None);
        full.store(true, Ordering::Relaxed);
        let said = Some("outputs: no space".to_owned());
        assert_eq!(publish(Channel::Keyframe), said);
        assert_eq!(publish(Channel::Thumbnail), said);
        assert_eq!(publish(Channel::Fused), said);
        full.store(false, Ordering::Relaxed);
        assert_eq!(publish(Channel::Fused), said);
        assert_eq!(publish(Channel::Thumbnail), said);
        assert_eq!(publish(Channel::Keyframe), None);
    }

    /// Fails once, and is closed from then on.
    #[derive(Default)]
    struct Broken(bool);

    impl Sink for Broken {
        fn publish(&mut self, _: &Output<'_>) -> Result<(), SinkError> {
            Err(match std::mem::replace(&mut self.0, true) {
                false => SinkError::Transport("no space".to_owned()),
                true => SinkError::Closed {
                    path: "out.mcap".into(),
                },
            })
        }
        fn finish(&mut self) -> Result<(), SinkError> {
            Ok(())
        }
    }

    #[test]
    fn why_a_file_was_closed_is_still_said() {
        let mut sink = Watched::new(Broken::default());
        for _ in 0..3 {
            let output = Output {
                channel: Channel::Fused,
                publish_time_ns: 0,
                about_time_ns: 0,
                payload: &[],
            };
            assert!(sink.publish(&output).is_err());
            assert_eq!(sink.fault().get(), Some("outputs: no space"));
        }
    }

    #[test]
    fn a_fault_says_what_is_wrong_now() {
        let fault = Fault::default();
        for i in 0..3 * TEXTS {
            fault.set(format!("{i}"));
            fault.set("no space".to_owned());
            let _ = fault.get();
            fault.clear();
            assert_eq!(fault.get(), None);
        }
        let fault = Fault::default();
        fault.set("no space".to_owned());
        fault.clear();
        fault.set("denied".to_owned());
        assert_eq!(fault.get(), Some("denied"));
        fault.set("no space".to_owned());
        assert_eq!(fault.get(), Some("no space"));
    }
}
