//! Live output over zenoh: every channel but keyframes under the configured prefix, encoded as in the output log.
//! Queries of `PREFIX/schema` are answered with the protobuf descriptors.

use super::{Channel, Output, Sink, SinkError, thumbnail};
use crate::proto;
use crate::time::Clock;
use crate::watchdog::Silence;
use crate::zenoh_session::encoding;
use prost::Message;
use zenoh::pubsub::Publisher;
use zenoh::qos::CongestionControl;
use zenoh::query::Queryable;
use zenoh::{Session, Wait};

/// Publishers of a run.
pub struct ZenohSink {
    publishers: Vec<(Channel, Publisher<'static>)>,
    _schema: Queryable<()>,
}

impl ZenohSink {
    /// Declares every channel but keyframes under `prefix`.
    ///
    /// # Errors
    /// [`SinkError::Transport`].
    pub fn declare(session: &Session, prefix: &str) -> Result<ZenohSink, SinkError> {
        let mut publishers = Vec::new();
        for channel in Channel::ALL {
            // Too large to send.
            if channel == Channel::Keyframe {
                continue;
            }
            let publisher = publisher(session, prefix, channel)?;
            publishers.push((channel, publisher));
        }
        let schema_key = format!("{prefix}/schema");
        let answer_key = schema_key.clone();
        let schema = session
            .declare_queryable(schema_key)
            .callback(move |query| {
                // If whoever asked has gone, no answer is needed.
                let _ = query.reply(answer_key.clone(), proto::DESCRIPTOR).wait();
            })
            .wait()
            .map_err(|e| declare_error(prefix, &e))?;
        Ok(ZenohSink {
            publishers,
            _schema: schema,
        })
    }
}

fn declare_error(prefix: &str, error: &zenoh::Error) -> SinkError {
    SinkError::Transport(format!("zenoh, prefix `{prefix}`: {error}"))
}

fn publisher(
    session: &Session,
    prefix: &str,
    channel: Channel,
) -> Result<Publisher<'static>, SinkError> {
    let message_encoding = if channel.schema().is_some() {
        "protobuf"
    } else {
        "json"
    };
    session
        .declare_publisher(format!("{prefix}/{}", channel.name()))
        .encoding(encoding(message_encoding, channel.schema()))
        // A slow subscriber must not hold up the vehicle.
        .congestion_control(CongestionControl::Drop)
        .wait()
        .map_err(|e| declare_error(prefix, &e))
}

/// Returns a function that reports a silent run on `PREFIX/health`, beside the run's own messages and on their `clock`.
///
/// # Errors
/// [`SinkError::Transport`].
pub fn health_reporter(
    session: &Session,
    prefix: &str,
    clock: impl Clock + 'static,
) -> Result<impl FnMut(&Silence) + Send + 'static, SinkError> {
    let publisher = publisher(session, prefix, Channel::Health)?;
    let mut health = proto::Health::default();
    Ok(move |silence: &Silence| {
        health.time_ns = clock.now_ns();
        health.state = silence.state.into();
        health.reasons = vec![silence.reason.clone()];
        health.heartbeat = silence.ticks;
        // A failure means that nobody listens or the session is gone; there is no other way to report it.
        let _ = publisher.put(health.encode_to_vec()).wait();
    })
}

impl Sink for ZenohSink {
    fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
        let publisher = self.publishers.iter().find(|(c, _)| *c == output.channel);
        let Some((_, publisher)) = publisher else {
            return Ok(());
        };
        let payload = match output.channel {
            Channel::Thumbnail => thumbnail::encode(output),
            _ => output.payload.to_vec(),
        };
        publisher
            .put(payload)
            .wait()
            .map_err(|e| SinkError::Transport(format!("zenoh {}: {e}", output.channel.name())))
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}
