"""Entry point of `torch.hub.load(FOLDER, 'srvp', RUN, source='local')`; see docs/python.md."""

import contextlib
import pathlib
import sys

dependencies = ['torch', 'numpy', 'PIL', 'tqdm', 'filelock', 'configargparse', 'yaml']

_ROOT = pathlib.Path(__file__).resolve().parent


def srvp(model, model_name='model.pt', device='cpu'):
    """Load a trained model.

    Parameters
    ----------
    model : path
        Folder of the model: config.json and the weights. Or the name of a published model, such as
        'kth', which is downloaded to pretrained/<name> of this repository unless it is there.
    model_name : str
        Weights in that folder.
    device : str, int or torch.device

    Returns
    -------
    predictor.Predictor
        With `predict`, `swap`, `y`, `w` and `decode`.
    """
    with _own_modules():
        import predictor
        import pretrained
        folder = pathlib.Path(model)
        if model in pretrained.MODELS:
            folder = _ROOT / 'pretrained' / model
            if not pretrained.holds_model(folder):
                pretrained.install(model, folder)
        return predictor.Predictor(folder, model_name, device)


@contextlib.contextmanager
def _own_modules():
    """Context in which imports find the modules of this repository.

    Modules of the caller with the same names, such as `utils` or `data`, are set aside before, and
    those of the repository removed afterwards: neither get in each other's way.
    """
    names = {path.stem for path in _ROOT.iterdir()
             if path.suffix == '.py' or (path / '__init__.py').exists()}

    def is_own(top):
        file = getattr(sys.modules.get(top), '__file__', None)
        places = _ROOT / f'{top}.py', _ROOT / top / '__init__.py'
        return file is not None and pathlib.Path(file).resolve() in places

    def loaded():
        return {name: module for name, module in sys.modules.items()
                if name.partition('.')[0] in names}
    before = loaded()
    for name in before:
        if not is_own(name.partition('.')[0]):
            del sys.modules[name]
    sys.path.insert(0, str(_ROOT))
    try:
        yield
    finally:
        sys.path.remove(str(_ROOT))
        for name in loaded():
            del sys.modules[name]
        sys.modules.update(before)
