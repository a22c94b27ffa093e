# make test    style and all tests
# make demo    show predictions of our model, then train and evaluate a small one on bundled digits
# make clean   remove what these two made

PYTHON ?= python3
VENV = .venv
RUN = runs/demo
DATA = runs/demo_data
SHOWN = runs/demo_pretrained
IN_VENV = $(VENV)/bin/python

.PHONY: test demo clean

# Two workers with one thread each: PyTorch's threads would compete
test: $(VENV)/installed
	$(IN_VENV) -m ruff check
	OMP_NUM_THREADS=1 $(IN_VENV) -m pytest -n 2 --dist loadfile tests

# An interrupted demo continues where it stopped.
demo: $(VENV)/installed
	@mkdir -p $(DATA)
	test -f $(DATA)/smmnist5k_test_2digits_64.npz || \
		$(IN_VENV) -m preprocessing.mmnist.make_test_set --data_dir $(DATA) --seq_len 25 \
			--digit_source mnist5k
	$(IN_VENV) visualize.py samples --xp_dir pretrained/smmnist_cpu --data_dir $(DATA) \
		--digit_source mnist5k --index 0 1 2 --overwrite \
		--out $(SHOWN)/samples.png $(SHOWN)/samples.gif
	@if test -f $(RUN)/config.json; then set -x; $(IN_VENV) train.py --resume --save_path $(RUN); \
	else set -x; \
		$(IN_VENV) train.py --config configs/demo.yaml --data_dir $(DATA) --save_path $(RUN); fi
	$(IN_VENV) test.py --xp_dir $(RUN) --data_dir $(DATA) --nt_gen 20 --n_samples 20 \
		--n_videos 50 --metrics psnr ssim

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo 'Python 3.10 or newer is needed; name one by make PYTHON=python3.12'; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(IN_VENV) -m pip install --quiet -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) $(RUN) $(DATA) $(SHOWN)
