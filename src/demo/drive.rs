//! What happens in the drive, as functions of time. Distances run along the road in metres; the story repeats every 20 s.

/// Length of the story.
const STORY_S: f64 = 20.0;

/// Time step of the integration and of its table.
const STEP_S: f64 = 0.005;

/// Centre of our lane, metres to the right of the road's middle.
pub const EGO_LANE_M: f64 = 1.75;
/// Centre of the oncoming lane, likewise.
pub const ONCOMING_LANE_M: f64 = -1.75;

/// Speed of sound.
const SOUND_MPS: f64 = 343.0;

/// The state at an instant.
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    /// Ego position along the road.
    pub ego_m: f64,
    /// Ego speed.
    pub speed_mps: f64,
    /// Ego acceleration.
    pub accel_mps2: f64,
    /// Heading relative to the start.
    pub heading_rad: f64,
    /// Yaw rate; left is positive.
    pub yaw_rate_rps: f64,
    /// From the camera to the lead vehicle's tail.
    pub lead_gap_m: f64,
    /// Whether the lead vehicle's brake lights are on.
    pub lead_brakes: bool,
    /// Along the road from the camera to the ambulance; negative behind.
    pub ambulance_m: f64,
}

/// The drive, integrated once.
pub struct Drive {
    table: Vec<State>,
}

/// Steps smoothly from 0 at `a` to 1 at `b`.
fn ramp(t: f64, a: f64, b: f64) -> f64 {
    let x = ((t - a) / (b - a)).clamp(0.0, 1.0);
    x * x * (3.0 - 2.0 * x)
}

/// Rises to 1 between `a` and `b`, falls back between `c` and `d`.
fn hump(t: f64, [a, b, c, d]: [f64; 4]) -> f64 {
    ramp(t, a, b) - ramp(t, c, d)
}

/// Returns the road's curvature, 1/m, left positive.
pub fn curvature(road_m: f64) -> f64 {
    // One bend to the left every 220 m.
    let along = road_m.rem_euclid(220.0);
    0.012 * hump(along, [105.0, 130.0, 165.0, 190.0])
}

impl Drive {
    /// Integrates `duration_s` and a little more.
    pub fn new(duration_s: f64) -> Drive {
        let steps = ((duration_s + 1.0) / STEP_S) as usize + 2;
        let mut table = Vec::with_capacity(steps);
        let mut state = State {
            lead_gap_m: 20.0,
            ..State::default()
        };
        for i in 0..steps {
            let story_s = (i as f64 * STEP_S).rem_euclid(STORY_S);
            let ego = |t: f64| 11.0 - 6.5 * hump(t, [6.4, 8.6, 9.6, 12.4]);
            let lead_mps = 11.0 - 7.5 * hump(story_s, [5.6, 7.6, 9.0, 11.6]);
            state.speed_mps = ego(story_s);
            state.accel_mps2 = (ego(story_s + STEP_S) - ego(story_s)) / STEP_S;
            state.yaw_rate_rps = state.speed_mps * curvature(state.ego_m);
            state.lead_brakes = (5.6..8.6).contains(&story_s);
            // The ambulance comes towards us at 14 m/s and passes us 11 s into the story.
            if story_s < STEP_S {
                state.ambulance_m = 255.0;
            }
            table.push(state);
            state.ego_m += state.speed_mps * STEP_S;
            state.heading_rad += state.yaw_rate_rps * STEP_S;
            state.lead_gap_m += (lead_mps - state.speed_mps) * STEP_S;
            state.lead_gap_m += 0.02 * (20.0 - state.lead_gap_m) * STEP_S;
            state.ambulance_m -= (14.0 + state.speed_mps) * STEP_S;
        }
        Drive { table }
    }

    /// Returns the state at `t_s`, interpolated.
    pub fn at(&self, t_s: f64) -> State {
        let last = self.table.len() - 2;
        let x = (t_s / STEP_S).clamp(0.0, last as f64);
        let (i, f) = ((x as usize).min(last), x.fract());
        let (a, b) = (self.table[i], self.table[i + 1]);
        let mix = |a: f64, b: f64| a + f * (b - a);
        State {
            ego_m: mix(a.ego_m, b.ego_m),
            speed_mps: mix(a.speed_mps, b.speed_mps),
            accel_mps2: mix(a.accel_mps2, b.accel_mps2),
            heading_rad: mix(a.heading_rad, b.heading_rad),
            yaw_rate_rps: mix(a.yaw_rate_rps, b.yaw_rate_rps),
            lead_gap_m: mix(a.lead_gap_m, b.lead_gap_m),
            // Each story's ambulance starts afresh, so there is no interpolation across a jump.
            ambulance_m: if (a.ambulance_m - b.ambulance_m).abs() > 10.0 {
                a.ambulance_m
            } else {
                mix(a.ambulance_m, b.ambulance_m)
            },
            lead_brakes: a.lead_brakes,
        }
    }

    /// Returns the distance from the microphone to the ambulance.
    fn range_m(&self, t_s: f64) -> f64 {
        let along = self.at(t_s).ambulance_m;
        let across = ONCOMING_LANE_M - EGO_LANE_M;
        (along * along + across * across).sqrt()
    }

    /// Returns when the sound heard at `t_s` left the siren, and from how far away. Solves `t_e + r(t_e) / c = t`.
    pub fn emission(&self, t_s: f64) -> (f64, f64) {
        let mut emitted_s = t_s - self.range_m(t_s) / SOUND_MPS;
        for _ in 0..3 {
            emitted_s = t_s - self.range_m(emitted_s) / SOUND_MPS;
        }
        (emitted_s, self.range_m(emitted_s))
    }
}

/// What is true at an instant, under the names of the model's events.
pub struct Truth {
    /// The siren can be heard over the vehicle's own noise.
    pub siren: bool,
    /// The ambulance is in the picture.
    pub ambulance: bool,
    /// A vehicle is ahead in our lane.
    pub vehicle_ahead: bool,
    /// The ego vehicle is braking.
    pub braking: bool,
    /// The ego vehicle is turning.
    pub turning: bool,
}

impl State {
    /// Returns the labels of the instant.
    pub fn truth(&self) -> Truth {
        Truth {
            siren: (-170.0..200.0).contains(&self.ambulance_m),
            ambulance: (6.0..130.0).contains(&self.ambulance_m),
            vehicle_ahead: self.lead_gap_m < 45.0,
            braking: self.accel_mps2 < -0.8,
            turning: self.yaw_rate_rps.abs() > 0.03,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_story_has_all_its_events_and_no_crash() {
        let drive = Drive::new(20.0);
        let mut seen = [0; 4];
        for i in 0..200 {
            let state = drive.at(f64::from(i) * 0.1);
            let truth = state.truth();
            assert!(state.lead_gap_m > 5.0, "gap {} at {i}", state.lead_gap_m);
            assert!(state.speed_mps > 3.0 && state.speed_mps < 15.0);
            for (n, flag) in
                seen.iter_mut()
                    .zip([truth.siren, truth.ambulance, truth.braking, truth.turning])
            {
                *n += i32::from(flag);
            }
        }
        assert!(seen.iter().all(|&n| n > 10 && n < 190), "{seen:?}");
    }

    #[test]
    fn sound_arrives_late_and_is_shifted() {
        let drive = Drive::new(20.0);
        let pitch = |t: f64| (drive.emission(t + 0.001).0 - drive.emission(t).0) / 0.001;
        let passes = (0..2000).find(|i| drive.at(f64::from(*i) * 0.01).ambulance_m < 0.0);
        let passes = f64::from(passes.unwrap()) * 0.01;
        assert!(pitch(passes - 3.0) > 1.03, "approaching: higher");
        assert!(pitch(passes + 3.0) < 0.97, "leaving: lower");
    }
}
