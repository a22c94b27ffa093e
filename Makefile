# make test    style and all tests
# make demo    show predictions of our models, then train and evaluate a smaller one
# make clean   remove what these two made

PYTHON ?= python3
VENV = .venv
DEMO = runs/demo
IN_VENV = $(VENV)/bin/python

.PHONY: test demo clean

# Two workers with one thread each: PyTorch's threads would compete
test: $(VENV)/installed
	$(IN_VENV) -m ruff check
	OMP_NUM_THREADS=1 $(IN_VENV) -m pytest -n 2 --dist loadfile tests

# Best of 20 futures of the first 20 test videos, beside the last given frame; a page of both:
# $(call evaluate,MODEL,RESULTS,OPTIONS)
define evaluate
$(IN_VENV) test.py --xp_dir $(1) --out_dir $(2) --n_videos 20 --n_samples 20 --no-report $(3)
$(IN_VENV) test.py --xp_dir $(1) --out_dir $(2)/last_frame --n_videos 20 --no-report $(3) \
	--baseline last_frame
$(IN_VENV) report.py $(2) $(2)/last_frame --names $(notdir $(2)) 'last frame' \
	--out_dir $(2)/page
@echo; echo 'To see these futures:' \
	'$(IN_VENV) -m webbrowser -t file://$(CURDIR)/$(2)/page/index.html'; echo
endef

SHAPES = --data_dir $(DEMO)/shapes --nt_gen 20
DIGITS = --data_dir $(DEMO)/digits --nt_gen 20 --digit_source mnist5k

# An interrupted demo continues where it stopped.
demo: $(VENV)/installed
	test -d $(DEMO)/videos || { \
		$(IN_VENV) examples/shapes.py --out_dir $(DEMO)/part --n_videos 600 20 20 && \
		mv $(DEMO)/part $(DEMO)/videos; }
	$(IN_VENV) preprocessing/folder/convert.py --data_dir $(DEMO)/videos --out_dir $(DEMO)/shapes
	$(call evaluate,pretrained/shapes_cpu,$(DEMO)/shapes_cpu,$(SHAPES) --metrics psnr ssim)
	test -f $(DEMO)/digits/smmnist5k_test_2digits_64.npz || \
		$(IN_VENV) -m preprocessing.mmnist.make_test_set --data_dir $(DEMO)/digits --seq_len 25 \
			--digit_source mnist5k
	$(call evaluate,pretrained/smmnist_cpu,$(DEMO)/smmnist_cpu,$(DIGITS) --metrics psnr ssim)
	@if test -f $(DEMO)/trained/config.json; then set -x; \
		$(IN_VENV) train.py --resume --save_path $(DEMO)/trained; \
	else set -x; $(IN_VENV) train.py --config configs/demo.yaml --data_dir $(DEMO)/shapes \
		--save_path $(DEMO)/trained; fi
	$(call evaluate,$(DEMO)/trained,$(DEMO)/trained,$(SHAPES) --metrics psnr)

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo 'Python 3.10 or newer is needed; name one by make PYTHON=python3.12'; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(IN_VENV) -m pip install --quiet -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) $(DEMO)
