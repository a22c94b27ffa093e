"""Damage to the weights of a network: drawn at random, or read from a file, and applied."""

import math
import zipfile

import numpy as np

from files import UserError, reading

# New value of an element v by --mode, from its draw (u, e) and the standard deviation of the
# intact tensor
MODES = {
    'scale': lambda v, u, e, std: u * v,
    'zero': lambda v, u, e, std: v.new_zeros(()),
    'noise': lambda v, u, e, std: v + u * e * std,
    'sign': lambda v, u, e, std: -v,
}
MAX_ITERATIONS = 99_999  # pictures of the network are numbered with five digits
MAX_DAMAGES = 1_000_000  # per iteration
MAX_TOTAL = 100_000_000  # of all runs, as they are held in memory

# A random choice of what to damage, and how
DRAW = np.dtype([
    ('entry', np.int64),       # index among the entries that may be damaged
    ('index', np.int64),       # flat index of the element, in C order; 0 for scalars
    ('strength', np.float64),  # u of --mode
    ('normal', np.float64),    # e of --mode, standard normal
])


# Drawing

def choose_entries(shapes, where):
    """Names of the entries that may be damaged: `where` and those below it, or all if it is None.

    Parameters
    ----------
    shapes : dict of tuples by name
        Of the entries of the `state_dict`.
    """
    names = [name for name in shapes if where is None or f'{name}.'.startswith(f'{where}.')]
    if not any(shapes[name] for name in names):
        parts = ', '.join(dict.fromkeys(name.partition('.')[0] for name in shapes))
        problem = 'only scalars match' if names else 'no entry of the model has this name or prefix'
        raise UserError(f'--where {where}: {problem}; use a prefix of names of entries, up to a '
                        f'dot; the parts are {parts}')
    return names


def draw_damage(shapes, args):
    """Draw the damage of all runs: entries uniformly, then their elements uniformly.

    Depends on the seed of the run and on the iteration only.

    Parameters
    ----------
    shapes : list of tuples
        Of the entries that may be damaged.

    Returns
    -------
    np.ndarray of DRAW (n_runs, n_iterations - 1, n_damages)
    """
    from utils import stream_rng  # imports PyTorch, which --help does without
    draws = np.empty((args.n_runs, args.n_iterations - 1, args.n_damages), DRAW)
    sizes = np.array([math.prod(shape) for shape in shapes])
    for run, i in np.ndindex(draws.shape[:2]):
        rng, d = stream_rng(args.seed + run, 'damage', i + 1), draws[run, i]
        d['entry'] = rng.randint(len(sizes), size=len(d))
        d['index'] = rng.random_sample(len(d)) * sizes[d['entry']]  # rounded towards 0
        d['strength'] = rng.uniform(args.damage_low, args.damage_high, len(d))
        d['normal'] = rng.standard_normal(len(d))
    return draws


# Reading

class DamageFile:
    """An untrusted damage.npz, read array by array.

    Parameters
    ----------
    path : path
    shapes : dict of tuples by name
        Of the entries of the `state_dict` that the damage must fit.
    """

    def __init__(self, path, shapes):
        self.path, self.shapes = path, shapes

    def check(self, condition, problem):
        """Raise a UserError unless the condition holds."""
        if not condition:
            raise UserError(f'--replay {self.path}: {problem}; use the damage.npz of an earlier '
                            'run on a model with the same parts and sizes')

    def read(self, name, fits, what):
        """Read an array, if its header `fits(shape, dtype)`: it may unpack to gigabytes."""
        complaint = 'is not the readable damage.npz of an earlier run'
        with (reading(f'--replay {self.path}', complaint, 'use another file'),
              zipfile.ZipFile(self.path) as archive, archive.open(f'{name}.npy') as f):
            if (version := np.lib.format.read_magic(f)) != (1, 0):
                raise ValueError(f'{name} has format {version}')
            shape, _, dtype = np.lib.format.read_array_header_1_0(f)
            self.check(fits(shape, dtype), f'{name} must be {what}, found {shape} of {dtype}')
            f.seek(0)
            array = np.lib.format.read_array(f, allow_pickle=False)
            f.read()  # its end is where the checksum is verified
            return array

    def is_text(self, dtype):
        """Whether a dtype is text no longer than any name or mode."""
        return dtype.kind == 'U' and dtype.itemsize <= 4 * max(map(len, [*self.shapes, *MODES]))

    def mode(self):
        """Key of `MODES`."""
        mode = str(self.read('mode', lambda shape, dtype: self.is_text(dtype) and shape == (),
                             'a mode'))
        self.check(mode in MODES, f'mode must be one of {", ".join(MODES)}, found {mode!r}')
        return mode

    def names(self):
        """Names of the entries that may be damaged."""
        def fits(shape, dtype):
            return self.is_text(dtype) and len(shape) == 1 and shape[0] <= len(self.shapes)

        names = self.read('names', fits, 'a list of entries of the model').tolist()
        self.check(len(set(names)) == len(names), 'names has duplicates')
        for name in names:
            self.check(name in self.shapes, f'the model has no entry {name}')
        self.check(any(self.shapes[name] for name in names), 'names has only scalars')
        return names

    def draws(self, names):
        """Array of DRAW (n_runs, n_iterations - 1, n_damages) on the entries `names`."""
        def fits(shape, dtype):
            return (dtype == DRAW and len(shape) == 3 and shape[0] >= 1
                    and 0 <= shape[1] < MAX_ITERATIONS and 1 <= shape[2] <= MAX_DAMAGES
                    and shape[0] * (shape[1] + 1) * shape[2] <= MAX_TOTAL)

        draws = self.read('draws', fits, '(runs, iterations, damages), within the limits of '
                          '--n_runs, --n_iterations and --n_damages, of ' + ', '.join(DRAW.names))
        entry, index = draws['entry'], draws['index']
        self.check(((0 <= entry) & (entry < len(names))).all(),
                   f'entry must be between 0 and {len(names) - 1}')
        sizes = np.array([math.prod(self.shapes[name]) for name in names])
        self.check(((0 <= index) & (index < sizes[entry])).all(), 'index is outside its entry')
        self.check(np.isfinite(draws['strength']).all() and np.isfinite(draws['normal']).all(),
                   'strength and normal must be finite')
        return draws


# Applying

class Weights:
    """Weights of a model, damaged in place, with their intact values.

    Attributes
    ----------
    state : dict of tensors by name
        The `state_dict`; shares its memory with the model.
    hit : dict of sets of int by name
        Flat indices of the elements damaged so far.
    """

    def __init__(self, model):
        self.state = model.state_dict()
        self.intact = {name: value.clone() for name, value in self.state.items()}
        self.hit = {name: set() for name in self.state}

    def restore(self):
        """Undo all damage."""
        for name, value in self.state.items():
            value.copy_(self.intact[name])
            self.hit[name].clear()

    def damage(self, names, mode, draws):
        """Damage elements in turn; returns the names of the entries that changed.

        Parameters
        ----------
        names : list of str
            Entries that `entry` of the draws refers to.
        mode : str
            Key of `MODES`.
        draws : np.ndarray of DRAW (n_damages)
        """
        changed = set()
        for entry, index, strength, normal in draws.tolist():
            name = names[entry]
            value = self.state[name]
            if value.ndim == 0:  # batch counter, not used in evaluation
                continue
            place = np.unravel_index(index, value.shape)
            std = self.intact[name].std(correction=0).double() if mode == 'noise' else None
            new = MODES[mode](value[place].double(), strength, normal, std)
            if name.endswith('running_var'):  # a negative one would make all predictions NaN
                new = new.nan_to_num(0).clamp(min=0)
            value[place] = new  # beyond float32: infinite
            self.hit[name].add(index)
            changed.add(name)
        return changed

    @property
    def n_hit(self):
        """Number of elements damaged so far, each counted once."""
        return sum(map(len, self.hit.values()))

    def change(self):
        """Euclidean norm of the change of all weights."""
        total = 0.
        for name, hit in self.hit.items():
            if hit:
                places = np.unravel_index(sorted(hit), self.state[name].shape)
                now, before = (s[name][places].double() for s in (self.state, self.intact))
                total += (now - before).square().sum().item()
        return math.sqrt(total)
