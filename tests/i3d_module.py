"""Make a TF-Hub module of I3D: `python i3d_module.py VARIABLES.npz FOLDER [GRAPH]`.

VARIABLES.npz holds its variables by name. GRAPH is a folder with saved_model.pb of the real module,
without variables; by default, the network is built here with layers of TensorFlow, from its
description rather than from the code under test. This is a script, as a process with PyTorch must
not import TensorFlow.
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np

os.environ.update(TF_CPP_MIN_LOG_LEVEL='3', CUDA_VISIBLE_DEVICES='')
import tensorflow as tf  # noqa: E402

v1 = tf.compat.v1


def network(x, variables):
    """Logits (N, 400) of x (N, T, 224, 224, 3)."""
    def get(name):
        return v1.get_variable(name, variables[name].shape)

    def unit(x, name, stride=1):
        name = f'RGB/inception_i3d/{name}'
        x = tf.nn.conv3d(x, get(f'{name}/conv_3d/w'), [1, stride, stride, stride, 1], 'SAME')
        mean, variance, beta = (get(f'{name}/batch_norm/{k}')
                                for k in ('moving_mean', 'moving_variance', 'beta'))
        return tf.nn.relu((x - mean) * tf.math.rsqrt(variance + 1e-3) + beta)

    def pool(x, kernel, stride):
        return tf.nn.max_pool3d(x, kernel, stride, 'SAME')

    def mixed(x, name):
        def branch(i, *units, x=x):
            for name_of_unit in units:
                x = unit(x, f'{name}/Branch_{i}/Conv3d_{name_of_unit}')
            return x
        last = '0a' if name == 'Mixed_5b' else '0b'
        return tf.concat([branch(0, '0a_1x1'), branch(1, '0a_1x1', '0b_3x3'),
                          branch(2, '0a_1x1', f'{last}_3x3'),
                          branch(3, '0b_1x1', x=pool(x, 3, 1))], -1)

    x = pool(unit(x, 'Conv3d_1a_7x7', 2), [1, 1, 3, 3, 1], [1, 1, 2, 2, 1])
    x = unit(unit(x, 'Conv3d_2b_1x1'), 'Conv3d_2c_3x3')
    x = pool(x, [1, 1, 3, 3, 1], [1, 1, 2, 2, 1])
    x = pool(mixed(mixed(x, 'Mixed_3b'), 'Mixed_3c'), 3, 2)
    for name in 'bcdef':
        x = mixed(x, f'Mixed_4{name}')
    x = mixed(mixed(pool(x, 2, 2), 'Mixed_5b'), 'Mixed_5c')
    x = tf.nn.avg_pool3d(x, [1, 2, 7, 7, 1], 1, 'VALID')
    head = 'RGB/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d'
    x = tf.nn.conv3d(x, get(f'{head}/w'), [1] * 5, 'SAME') + get(f'{head}/b')
    return tf.reduce_mean(x, [1, 2, 3])


def import_graph(folder):
    """Import the graph of the real module; returns the saver of its variables."""
    from tensorflow.core.protobuf import saved_model_pb2
    saved = saved_model_pb2.SavedModel.FromString(Path(folder, 'saved_model.pb').read_bytes())
    graph = next(g for g in saved.meta_graphs if not g.meta_info_def.tags)
    return v1.train.import_meta_graph(graph)


def load(variables, session):
    """Set all variables of the graph."""
    initializers = {v.initializer: v.op.name for v in v1.global_variables()}
    assert sorted(initializers.values()) == sorted(variables)
    session.run(list(initializers), {op.inputs[1]: variables[name]
                                     for op, name in initializers.items()})


def main(variables, folder, graph=None):
    variables = dict(np.load(variables))
    with tf.Graph().as_default(), v1.Session() as session:
        if graph:
            saver = import_graph(graph)
            load(variables, session)
            os.makedirs(f'{folder}/variables')
            saver.save(session, f'{folder}/variables/variables', write_meta_graph=False,
                       write_state=False)
            shutil.copy(f'{graph}/saved_model.pb', folder)
        else:
            x = v1.placeholder(tf.float32, (None, None, 224, 224, 3))
            logits = network(x, variables)
            load(variables, session)
            builder = v1.saved_model.Builder(folder)
            signature = v1.saved_model.predict_signature_def({'rgb_input': x}, {'default': logits})
            builder.add_meta_graph_and_variables(session, [], {'default': signature})
            builder.save()


if __name__ == '__main__':
    main(*sys.argv[1:])
