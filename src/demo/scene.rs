//! What the camera sees: a street with houses and trees, a car ahead, an oncoming ambulance.

use super::Random;
use super::drive::{EGO_LANE_M, ONCOMING_LANE_M, State, curvature};
use super::raster::{Canvas, Colour, mix};

/// Picture size.
pub const WIDTH: usize = 640;
/// Picture size.
pub const HEIGHT: usize = 480;

const FOCAL_PX: f64 = 540.0;
const HORIZON_PX: f64 = 215.0;
const CAMERA_HEIGHT_M: f64 = 1.4;
const NEAR_M: f64 = 1.6;
const FAR_M: f64 = 170.0;

/// Half the width of the road, where the sidewalks begin.
const ROAD_HALF_M: f64 = 3.9;
const WALK_HALF_M: f64 = 6.6;

/// Length of road that one plot takes.
const PLOT_M: f64 = 16.0;

const HAZE: Colour = [206.0, 216.0, 226.0];
const ASPHALT: Colour = [84.0, 86.0, 91.0];
const PAINT: Colour = [232.0, 232.0, 224.0];
const WALK: Colour = [158.0, 154.0, 148.0];
const GRASS: Colour = [104.0, 128.0, 84.0];

/// Draws frames of one drive.
pub struct Scene {
    canvas: Canvas,
    seed: u64,
    /// The road's sideways shift at every metre ahead.
    shift: Vec<f64>,
}

/// A box and its colour.
#[derive(Clone, Copy)]
struct Block {
    /// Sideways extent, metres from the road's middle.
    x: (f64, f64),
    /// Extent above the ground.
    y: (f64, f64),
    /// Extent ahead.
    z: (f64, f64),
    colour: Colour,
}

impl Scene {
    pub fn new(seed: u64) -> Scene {
        Scene {
            canvas: Canvas::new(WIDTH, HEIGHT),
            seed,
            shift: Vec::new(),
        }
    }

    /// Draws the state at `t_s` into `rgb`.
    pub fn draw_into(&mut self, state: &State, t_s: f64, frame: u64, rgb: &mut Vec<u8>) {
        self.bend(state);
        let horizon = HORIZON_PX as usize;
        self.canvas
            .gradient(0, horizon, [122.0, 166.0, 214.0], HAZE);
        self.canvas
            .gradient(horizon, HEIGHT, mix(GRASS, HAZE, 0.7), GRASS);
        self.ground(state);
        self.things(state, t_s);
        self.bonnet();
        let noise = Random::new(self.seed, 1000 + frame).next_u64();
        self.canvas.finish_into(noise, rgb);
    }

    /// Integrates the road's bend ahead of the camera, relative to its heading.
    fn bend(&mut self, state: &State) {
        self.shift.clear();
        let (mut x, mut heading) = (0.0, 0.0);
        for z in 0..=FAR_M as usize + 1 {
            self.shift.push(x);
            heading += curvature(state.ego_m + z as f64);
            x -= heading;
        }
    }

    fn project(&self, x: f64, y: f64, z: f64) -> (f64, f64) {
        let z = z.max(NEAR_M);
        let i = (z as usize).min(self.shift.len() - 2);
        let bend = self.shift[i] + (z - i as f64) * (self.shift[i + 1] - self.shift[i]);
        let scale = FOCAL_PX / z;
        (
            WIDTH as f64 / 2.0 + scale * (x - EGO_LANE_M + bend),
            HORIZON_PX + scale * (CAMERA_HEIGHT_M - y),
        )
    }

    /// Draws a strip on the ground between two distances.
    fn strip(&mut self, x: (f64, f64), z: (f64, f64), colour: Colour) {
        let corners = [
            self.project(x.0, 0.0, z.0),
            self.project(x.1, 0.0, z.0),
            self.project(x.1, 0.0, z.1),
            self.project(x.0, 0.0, z.1),
        ];
        self.canvas.polygon(&corners, fogged(colour, z.0));
    }

    /// Draws road, sidewalks and markings, far to near.
    fn ground(&mut self, state: &State) {
        const MARK_M: f64 = 3.0;
        let mut z = FAR_M;
        while z > NEAR_M {
            let step = (z * 0.06).clamp(0.25, 4.0);
            let span = ((z - step).max(NEAR_M), z);
            self.strip((-WALK_HALF_M, WALK_HALF_M), span, WALK);
            self.strip((-ROAD_HALF_M, ROAD_HALF_M), span, ASPHALT);
            for side in [-1.0, 1.0] {
                let edge = side * (ROAD_HALF_M - 0.35);
                self.strip((edge - 0.07, edge + 0.07), span, PAINT);
                let kerb = side * ROAD_HALF_M;
                self.strip((kerb - 0.1, kerb + 0.1), span, [186.0, 184.0, 180.0]);
            }
            z -= step;
        }
        // The dashes of the middle line move with the road.
        let first = (state.ego_m / (3.0 * MARK_M)).floor() as i64;
        for dash in (first..first + 22).rev() {
            let near = dash as f64 * 3.0 * MARK_M - state.ego_m;
            let mut from = near.max(NEAR_M);
            while from < (near + MARK_M).min(FAR_M) {
                let to = (from + 1.0).min(near + MARK_M);
                self.strip((-0.08, 0.08), (from, to), PAINT);
                from = to;
            }
        }
    }

    /// Draws everything that stands on the ground, far to near.
    fn things(&mut self, state: &State, t_s: f64) {
        let first = (state.ego_m / PLOT_M).floor() as i64 - 1;
        let mut order: Vec<(f64, i64)> = (first..first + 12)
            .map(|plot| (plot as f64 * PLOT_M - state.ego_m, plot))
            .collect();
        const LEAD: i64 = -1000;
        const AMBULANCE: i64 = -1001;
        order.push((state.lead_gap_m, LEAD));
        order.push((state.ambulance_m, AMBULANCE));
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (z, what) in order {
            match what {
                LEAD => self.car(z, state.lead_brakes),
                AMBULANCE => self.ambulance(z, t_s),
                plot => self.plot(z, plot),
            }
        }
    }

    /// Draws a house on each side, some with a tree in front.
    fn plot(&mut self, z: f64, plot: i64) {
        let mut random = Random::new(self.seed, (plot + 5000) as u64);
        for side in [-1.0, 1.0] {
            let base: Colour = [
                random.range(120.0, 205.0) as f32,
                random.range(105.0, 180.0) as f32,
                random.range(95.0, 165.0) as f32,
            ];
            let height = random.range(6.0, 16.0);
            let setback = WALK_HALF_M + random.range(0.2, 2.5);
            let span = (z, z + random.range(11.0, 15.5));
            self.house(side, setback, height, span, base);
            if random.unit() < 0.55 {
                let at = z + random.range(2.0, 13.0);
                self.tree(side * (WALK_HALF_M - 0.9), at, random.range(4.0, 7.0));
            }
        }
    }

    fn house(&mut self, side: f64, setback: f64, height: f64, z: (f64, f64), base: Colour) {
        if z.1 < NEAR_M + 0.5 || z.0 > FAR_M {
            return;
        }
        let wall = side * setback;
        let near = z.0.max(NEAR_M);
        // The wall along the street, in panels so that it follows the bend, then the gable towards us.
        let mut from = z.1.min(FAR_M);
        while from > near {
            let to = (from - 3.0).max(near);
            self.wall(wall, (0.0, height), (to, from), mix(base, [0.0; 3], 0.18));
            from = to;
        }
        self.windows(wall, height, z, base);
        if z.0 > NEAR_M {
            let outer = wall + side * 9.0;
            let corners = [
                self.project(wall, 0.0, z.0),
                self.project(outer, 0.0, z.0),
                self.project(outer, height, z.0),
                self.project(wall, height, z.0),
            ];
            self.canvas.polygon(&corners, fogged(base, z.0));
        }
    }

    fn wall(&mut self, x: f64, y: (f64, f64), z: (f64, f64), colour: Colour) {
        let corners = [
            self.project(x, y.0, z.0),
            self.project(x, y.0, z.1),
            self.project(x, y.1, z.1),
            self.project(x, y.1, z.0),
        ];
        self.canvas.polygon(&corners, fogged(colour, z.0));
    }

    fn windows(&mut self, wall: f64, height: f64, z: (f64, f64), base: Colour) {
        const STOREY_M: f64 = 3.0;
        let glass = mix(base, [58.0, 74.0, 92.0], 0.8);
        let mut floor = 1.1;
        while floor + 1.4 < height {
            let mut at = z.0 + 1.2;
            while at + 1.3 < z.1 {
                if at > NEAR_M && at < FAR_M * 0.6 {
                    self.wall(wall, (floor, floor + 1.4), (at, at + 1.3), glass);
                }
                at += 2.9;
            }
            floor += STOREY_M;
        }
    }

    fn tree(&mut self, x: f64, z: f64, height: f64) {
        if !(NEAR_M + 1.0..FAR_M).contains(&z) {
            return;
        }
        let trunk = [
            self.project(x - 0.14, 0.0, z),
            self.project(x + 0.14, 0.0, z),
            self.project(x + 0.1, height * 0.6, z),
            self.project(x - 0.1, height * 0.6, z),
        ];
        self.canvas.polygon(&trunk, fogged([92.0, 72.0, 56.0], z));
        let radius = height * 0.26 * FOCAL_PX / z;
        for (dx, dy, shade) in [(-0.5, 0.62, 0.8), (0.5, 0.66, 0.92), (0.0, 0.82, 1.05)] {
            let leaf = [66.0 * shade, 104.0 * shade, 56.0 * shade];
            let centre = self.project(x + dx, height * f64::from(dy as f32), z);
            self.canvas
                .disc(centre, radius, fogged(leaf, z), 1.0, false);
        }
    }

    /// Draws a box: its inner side, its top, and the face towards us.
    fn block(&mut self, block: Block) {
        let Block { x, y, z, colour } = block;
        if z.1 < NEAR_M || z.0 > FAR_M {
            return;
        }
        let middle = (x.0 + x.1) / 2.0;
        let side = if middle < EGO_LANE_M { x.1 } else { x.0 };
        self.wall(side, y, z, mix(colour, [0.0; 3], 0.3));
        let top = [
            self.project(x.0, y.1, z.0),
            self.project(x.1, y.1, z.0),
            self.project(x.1, y.1, z.1),
            self.project(x.0, y.1, z.1),
        ];
        self.canvas
            .polygon(&top, fogged(mix(colour, [255.0; 3], 0.2), z.0));
        self.face(x, y, z.0, colour);
    }

    fn face(&mut self, x: (f64, f64), y: (f64, f64), z: f64, colour: Colour) {
        let corners = [
            self.project(x.0, y.0, z),
            self.project(x.1, y.0, z),
            self.project(x.1, y.1, z),
            self.project(x.0, y.1, z),
        ];
        self.canvas.polygon(&corners, fogged(colour, z));
    }

    fn shadow(&mut self, x: (f64, f64), z: (f64, f64)) {
        self.strip(
            (x.0 - 0.1, x.1 + 0.1),
            (z.0.max(NEAR_M), z.1),
            [46.0, 47.0, 50.0],
        );
    }

    /// Draws the car ahead, from behind.
    fn car(&mut self, z: f64, brakes: bool) {
        let x = (EGO_LANE_M - 0.9, EGO_LANE_M + 0.9);
        let paint = [58.0, 82.0, 122.0];
        self.shadow(x, (z - 0.2, z + 4.3));
        let body = |y, z, colour| Block { x, y, z, colour };
        self.block(body((0.35, 0.95), (z, z + 4.2), paint));
        let cabin = (x.0 + 0.12, x.1 - 0.12);
        self.block(Block {
            x: cabin,
            y: (0.95, 1.5),
            z: (z + 0.3, z + 2.9),
            colour: paint,
        });
        self.face(
            (cabin.0 + 0.1, cabin.1 - 0.1),
            (1.02, 1.42),
            z + 0.29,
            [52.0, 62.0, 72.0],
        );
        for wheel in [x.0 + 0.05, x.1 - 0.3] {
            self.face((wheel, wheel + 0.25), (0.0, 0.4), z, [28.0, 28.0, 30.0]);
        }
        self.face(
            (EGO_LANE_M - 0.28, EGO_LANE_M + 0.28),
            (0.5, 0.64),
            z,
            [224.0, 224.0, 214.0],
        );
        let light = if brakes {
            [255.0, 36.0, 24.0]
        } else {
            [132.0, 26.0, 26.0]
        };
        for edge in [x.0 + 0.04, x.1 - 0.4] {
            self.face((edge, edge + 0.36), (0.7, 0.86), z, light);
            if brakes {
                let centre = self.project(edge + 0.18, 0.78, z);
                self.canvas
                    .disc(centre, 0.75 * FOCAL_PX / z, [255.0, 60.0, 40.0], 0.5, true);
            }
        }
    }

    /// Draws the ambulance from the front, with its lights flashing in turn.
    fn ambulance(&mut self, z: f64, t_s: f64) {
        if !(NEAR_M..FAR_M).contains(&z) {
            return;
        }
        let x = (ONCOMING_LANE_M - 1.05, ONCOMING_LANE_M + 1.05);
        let white = [236.0, 238.0, 236.0];
        self.shadow(x, (z - 0.2, z + 5.8));
        self.block(Block {
            x,
            y: (0.4, 2.45),
            z: (z + 1.4, z + 5.8),
            colour: white,
        });
        self.block(Block {
            x,
            y: (0.4, 1.25),
            z: (z, z + 1.5),
            colour: white,
        });
        self.face(
            (x.0 + 0.14, x.1 - 0.14),
            (1.3, 1.95),
            z + 1.39,
            [48.0, 60.0, 72.0],
        );
        self.wall(x.1, (1.0, 1.32), (z + 1.4, z + 5.8), [214.0, 44.0, 38.0]);
        self.face((x.0, x.1), (0.98, 1.14), z, [214.0, 44.0, 38.0]);
        for wheel in [x.0 + 0.06, x.1 - 0.34] {
            self.face((wheel, wheel + 0.28), (0.0, 0.5), z, [28.0, 28.0, 30.0]);
        }
        for lamp in [x.0 + 0.15, x.1 - 0.45] {
            self.face((lamp, lamp + 0.3), (0.62, 0.82), z, [255.0, 252.0, 224.0]);
        }
        let phase = (t_s * 2.5).fract();
        for (at, colour, on) in [
            (x.0 + 0.45, [70.0, 110.0, 255.0], phase < 0.5),
            (x.1 - 0.45, [255.0, 46.0, 40.0], phase >= 0.5),
        ] {
            let dim = mix(colour, [40.0; 3], 0.6);
            self.face(
                (at - 0.35, at + 0.35),
                (2.45, 2.68),
                z + 1.4,
                if on { colour } else { dim },
            );
            if on {
                let centre = self.project(at, 2.56, z + 1.4);
                self.canvas
                    .disc(centre, (1.7 * FOCAL_PX / z).max(5.0), colour, 0.75, true);
            }
        }
    }

    /// Draws the ego vehicle's bonnet at the lower edge.
    fn bonnet(&mut self) {
        let (w, h) = (WIDTH as f64, HEIGHT as f64);
        let corners = [
            (60.0, h),
            (150.0, h - 26.0),
            (w - 150.0, h - 26.0),
            (w - 60.0, h),
        ];
        self.canvas.polygon(&corners, [52.0, 56.0, 62.0]);
    }
}

/// Fades a colour into the haze with distance.
fn fogged(colour: Colour, z: f64) -> Colour {
    let clear = (-z / 110.0).exp() as f32;
    mix(HAZE, colour, clear)
}
