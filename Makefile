# Two commands do everything: `make demo` and `make test`. Python 3.11 or newer is all they need.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
export HF_HUB_DISABLE_TELEMETRY = 1

# The synthetic corpora of 05 to 07, made two at a time, the largest first.
CORPORA := $(addprefix demo_,cremad mosei voxceleb2_av ravdess voxceleb2 audioset emodb)
MORE := demo_ravdess_av demo_lombard

.PHONY: demo demo-full test predict readme clean $(CORPORA) $(MORE)

# A run's own results; those in results/ itself are committed, made by `make demo RESULTS=results`.
RESULTS ?= results/mine
DEMO := --demo $(if $(filter-out results/mine,$(RESULTS)),--RESULTS_ROOT=$(RESULTS))

demo: $(VENV)/ready
	@echo "9 to 12 minutes on two idle CPU cores: 01 takes two in all, 02 one, 04 three, 05 one, 06 one, 07 two"
	$(RUN) 01_prepare_data.py $(DEMO)
	$(RUN) 02_finetune_unimodal.py $(DEMO)
	$(RUN) 03_extract_features.py $(DEMO)
	$(RUN) 04_fuse_classify.py $(DEMO)
	$(MAKE) --no-print-directory -j2 $(CORPORA)
	$(RUN) 05_pretrain_vqmae.py $(DEMO)
	$(RUN) 06_mae_imputation.py $(DEMO)
	$(RUN) 07_crossmodal_mosei.py $(DEMO)
	@echo; echo "All tables and figures: open $(RESULTS)/index.html"

# The other two corpora of 06, on which its Figures 2 to 4 are drawn once more.
demo-full: demo
	$(MAKE) --no-print-directory -j2 $(MORE)
	$(RUN) 06_mae_imputation.py $(DEMO) --CORPUS=demo_lombard
	$(RUN) 06_mae_imputation.py $(DEMO) --CORPUS=demo_ravdess_av

demo_ravdess_av: IN_PLACE = --MEDIA_IN_PLACE=true
$(CORPORA) $(MORE): $(VENV)/ready
	@said="$$($(RUN) 01_prepare_data.py $(DEMO) --CORPUS=$@ --WORKERS=1 $(IN_PLACE) 2>&1)"; \
	code=$$?; echo "$$said"; exit $$code

# A file's tests share its demo and stay in one process; the longest files begin.
LONG = $(addprefix tests/test_,demo_end_to_end.py gpu_rules.py 05_pretrain_vqmae.py 06_mae_imputation.py \
	07_crossmodal_mosei.py li_fusion.py training.py finetune.py babaali_fusion.py chochlakis_mae.py demo_av.py \
	01_prepare_data.py demo_corpus.py constants.py)
test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=8 $(LONG) tests

# Emotion of each recording in a folder, by the models of `make demo` or of another corpus:
#   make predict CLIPS=my_clips [TRAINED_ON=iemocap]
TRAINED_ON ?= demo_iemocap
BY_THEM = --CORPUS="$(CLIPS)/" --TRAINED_ON=$(TRAINED_ON) --RESULTS_ROOT=$(RESULTS)
predict: $(VENV)/ready
	@test -d "$(CLIPS)" || { echo "make predict CLIPS=folder: name a folder of recordings"; exit 1; }
	$(RUN) 01_prepare_data.py --CORPUS="$(CLIPS)/" --MAX_PROBLEM_SHARE=1 --RESULTS_ROOT=$(RESULTS)
	$(RUN) 03_extract_features.py $(BY_THEM)
	$(RUN) 04_fuse_classify.py $(BY_THEM) --PAPERS=babaali

readme: $(VENV)/ready        # makes results/<paper>.md and the status table in README.md from results/
	$(RUN) -m common.pages

$(VENV)/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) data/prepared data/features data/models data/cache data/checkpoints data/codes data/listen data/clips data/masks data/raw/demo_*
