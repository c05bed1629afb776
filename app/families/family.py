"""What a kind of foundation model needs, said once for each kind.

A family is one file in this folder with one subclass of `Family`; `families.FAMILIES` finds it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor

from ..dual_adapter import Split
from ..examples import Examples, process
from ..heads import TRAINED_HEADS
from ..processor import Processor

if TYPE_CHECKING:
    from datasets import Dataset

Inputs = Mapping[str, Any]


def one_picture_each(inputs: Inputs) -> list[Inputs]:
    """Return the inputs of one pass for each picture of an example.

    Examples with several have ``pixel_values`` (batch, pictures, 3, height, width); with one, or none, these
    are the inputs as they are.
    """
    pixels = inputs.get("pixel_values")
    if pixels is None or pixels.ndim == 4:
        return [inputs]
    return [{**inputs, "pixel_values": one} for one in pixels.unbind(1)]


class Family(ABC):
    """How models of one kind are loaded, what they are fed, and which features a head takes.

    Attributes
    ----------
    architectures : dict
        ``model_type`` of a configuration → name of the class in transformers. A name, for importing one takes
        time, and a process uses one family.
    words : str
        What a person calls it, for messages.
    built_in : dict
        Names of models without trained weights → what `configure` makes them of; most families have none.
    lora_targets : str or sequence of str
        Where LoRA goes, as PEFT's ``target_modules``: query and value of every attention.
    left_alone : str, optional
        Modules that get no bottleneck and no LoRA, as an expression that matches their whole name.
    prompted : str, optional
        Blocks that take prompts, as an expression that matches their whole name; most families have none.
    adapters : bool
        Whether adapters can be put into it.
    task_type : str
        What PEFT is to take it for.
    precisions : tuple of str
        What its weights can be held in: values of the setting `backbone-precision`.
    losses : tuple of str
        What it can be trained by, of `tasks.TASKS`.
    kind_of_examples : type
        What `examples` makes.
    heads : tuple of str
        Kinds of heads that it can answer by, see `answering_by`.
    asks : bool
        Whether it reads the question, where its models read texts.
    purpose : str
        What a model card says it is for, a pipeline of the hub.
    chosen_by : str
        Of a kind that answers by the answers' texts: by what one is chosen, a sentence for a model card in
        which ``{prompt}`` stands for the setting `answer-prompt`.
    """

    architectures: dict[str, str]
    words: str
    built_in: dict[str, dict[str, Any]] = {}
    lora_targets: str | Sequence[str] = ()
    left_alone: str | None = None
    prompted: str | None = None
    adapters = True
    task_type = "FEATURE_EXTRACTION"
    precisions: tuple[str, ...] = ("float32",)
    losses: tuple[str, ...] = ("bce-scores", "cross-entropy")
    kind_of_examples: type = Examples
    heads: tuple[str, ...] = TRAINED_HEADS
    asks = True
    purpose = "visual-question-answering"
    chosen_by = ""

    def architecture(self, config: Any) -> type[Any]:
        """Return the class of a model."""
        return getattr(transformers, self.architectures[config.model_type])

    def configure(self, **entries: Any) -> Any:
        """Make the configuration of a name in `built_in`."""
        raise NotImplementedError

    def load(self, folder: str | Path, config: Any, **how: Any) -> Any:
        """Load a model's weights from safetensors; `how` is what ``from_pretrained`` is given beside.

        Raises
        ------
        ValueError
            Weights are missing: transformers would leave them random.
        """
        loaded: Any = self.architecture(config)
        model, report = loaded.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **how,
        )
        if missing := sorted(self.missing(model, report["missing_keys"])):
            raise ValueError(f"no weights for {missing[0]}")
        return model

    def missing(self, model: Any, keys: set[str]) -> set[str]:
        """Return which of the weights that a checkpoint lacks matter; a family may do without some."""
        return keys

    def draw(self, config: Any, seed: int, dtype: torch.dtype = torch.float32) -> Any:
        """Make a model of random weights, a function of `seed`."""
        architecture = self.architecture(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = architecture(config)
        for parameter in model.parameters():  # buffers, such as the frequencies of positions, stay exact
            parameter.data = parameter.data.to(dtype)
        return model

    def prepare(self, model: Any) -> Any:
        """Change how a model computes, not what; most families leave it."""
        return model

    @abstractmethod
    def processor(self, folder: str | Path, config: Any) -> Any:
        """Say how its inputs are made."""

    def examples(
        self, rows: "Dataset", model: Any, processor: Any, device: torch.device, pictures: int = 0
    ) -> Any:
        """Make examples, ready for the model, of a benchmark's rows; what is computed for it, on `device`.

        `pictures` is how many an example has, see `process`.
        """
        return process(rows, processor, pictures)

    def answering_by(self, head: str, config: Any, prompt: str) -> "Family":
        """Return the family as it answers by a kind of head, one of `heads`, with a model of `config`.

        With a head that is trained that is itself. A kind that answers by the answers' texts is a subclass
        without `architectures` of its own: it has `answers`, and its `features` are the logits.

        Parameters
        ----------
        prompt : str
            The setting `answer-prompt`.
        """
        return self

    def adapting(self, parts: str) -> "Family":
        """Return the family as it puts adapters into parts of its models.

        Parameters
        ----------
        parts : str
            The setting `adapted-parts`. Kinds that know no parts take its default alone.

        Raises
        ------
        ValueError
            There are no such parts.
        """
        if parts != "language":
            raise ValueError(f"adapted-parts = {parts!r}; allowed: 'language', or a backbone that writes")
        return self

    def lora_places(self, model: Any) -> str | Sequence[str]:
        """Return `lora_targets` for a model; ValueError if it has none in a part that was chosen."""
        return self.lora_targets

    def places_left_alone(self, model: Any) -> str | None:
        """Return `left_alone` for a model; ValueError if it has no block in a part that was chosen."""
        return self.left_alone

    def answers(
        self, texts: Sequence[str], model: Any, processor: Any, device: torch.device
    ) -> Tensor | None:
        """Make what stands for each answer of a list, (answers, ...); computed on `device`, it is on the CPU.

        It is ``answers`` among the inputs of `features`. None where a head is trained, which knows no text.
        """
        return None

    @abstractmethod
    def features(self, model: Any, inputs: Inputs) -> Tensor:
        """Compute features (batch, width) of one picture an example by one plain forward.

        Pixels are normalised. Where it answers by the answers' texts, these are the logits (batch, answers).
        """

    def stock_code(self, model: Any, processor: Any) -> str:
        """Return lines for a model card: `features` of ``inputs`` by a stock model, without this package.

        They find ``model`` of `architecture` with the adapter inside, and ``inputs`` as `features` takes them
        of one example, and set ``features``. Of a family that answers by the answers' texts they find
        ``folder``, what `Processor.stock_code` set, and ``answers``, and set ``logits``.

        Parameters
        ----------
        model : nn.Module
            This package's, which may differ from a stock one.
        processor : Processor
            What makes its inputs.
        """
        return "features = model(**inputs).pooler_output"

    def width(self, config: Any) -> int:
        """Width of the features of one picture."""
        return config.hidden_size

    def passes(self, model: Any, inputs: Inputs) -> list[Inputs]:
        """Return the inputs of each pass that examples with several pictures take: one a picture."""
        return one_picture_each(inputs)

    def all_features(self, model: Any, inputs: Inputs) -> Tensor:
        """Compute the features of all pictures of an example: those of each pass, one after the other."""
        each = [self.features(model, one) for one in self.passes(model, inputs)]
        return torch.cat(each, dim=1) if len(each) > 1 else each[0]

    def all_width(self, config: Any, pictures: int) -> int:
        """Width of the features of so many pictures an example."""
        return pictures * self.width(config)

    def adapted_width(self, config: Any) -> int:
        """Width of the hidden states that adapters change."""
        return config.hidden_size

    def split(self, model: Any, processor: Processor) -> Split | None:
        """Part an adapted model's forward, so that branches share the first part; None: it cannot be.

        Its batches are as they come, their pixels not normalised.
        """
        return None
