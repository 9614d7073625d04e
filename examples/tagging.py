"""Tagging characters by their context: which city does somebody leave (离开), and to which do they go (去)?

Every clause names one city. The deciding word stands before it (我昨天离开北京) or after it (北京我昨天离开了), where a
layer that reads in one direction sees it too late. The program trains such a GRU and a bidirectional one on sentences
of one to three clauses. It tests both on cities that no training sentence names; their characters occur in others.

    python examples/tagging.py [--quick] [--plot FILE.png]
"""

import argparse

import numpy as np

import fastrnn
from fastrnn.lm.pictures import require_matplotlib

KNOWN = ["北京", "上海", "南京", "西宁", "天津", "长春", "广州", "杭州", "成都", "武汉", "长沙", "沈阳", "洛阳"]
KNOWN += ["济南", "海口", "西安", "贵阳", "大连", "重庆", "连云港", "石家庄", "哈尔滨"]
NEW = ["北海", "南宁", "南阳", "济宁", "安阳", "海宁", "海阳", "广安", "武安", "广汉", "连州", "大庆"]
VERBS = {"F": ("离开", "告别", "要离开", "会离开"), "T": ("去", "前往", "要去", "会去")}  # from, to
WHO, WHEN = ("我", "你", "他", "她", "我们", "老师"), ("", "昨天", "今天", "明天", "下周", "上个月", "春天")
BEFORE, AFTER, NEITHER = 0, 1, 2  # where the deciding word of a city stands; NEITHER is no city
EXAMPLE = "南宁我昨天离开了。我今天去北海"
PINYIN = ["nán", "níng", "wǒ", "zuó", "tiān", "lí", "kāi", "le", ".", "wǒ", "jīn", "tiān", "qù", "běi", "hǎi"]


def sentence(rng, cities):
    """Return a text, the tag of each character (O: other, F: from, T: to), and where its deciding word stands."""
    text, tags, places = "", "", []
    for clause in range(rng.integers(1, 4)):
        city, tag, place = rng.choice(cities), rng.choice(["F", "T"]), rng.integers(2)
        others = rng.choice(WHO) + rng.choice(WHEN) + rng.choice(VERBS[tag])
        parts = [(others, "O", NEITHER), (city, tag, place)]
        if place == AFTER:
            parts = [(city, tag, place), (others + "了", "O", NEITHER)]
        for part, kind, where in [("。" if clause else "", "O", NEITHER), *parts]:
            text, tags, places = text + part, tags + kind * len(part), places + [where] * len(part)
    return text, tags, places


def read(sentences, characters):
    """Return ids, tags and places, each (T,B), and the lengths (B,) of the sentences."""
    lengths = np.array([len(text) for text, _, _ in sentences])
    ids, tags = np.zeros((2, max(lengths), len(lengths)), int)
    places = np.full(ids.shape, NEITHER)
    for b, (text, kinds, where) in enumerate(sentences):
        ids[: len(text), b] = [characters.index(c) for c in text]
        tags[: len(text), b] = ["OFT".index(kind) for kind in kinds]
        places[: len(text), b] = where
    return ids, tags, places, lengths


def train(known, size, bidirectional, steps):
    ids, tags, _, lengths = known
    gru = fastrnn.GRU(size, 32, bidirectional=bidirectional, rng=0)
    read_out = fastrnn.Linear(64 if bidirectional else 32, 3, rng=1)
    adam, rng = fastrnn.Adam([gru.parameters(), read_out.parameters()]), np.random.default_rng(2)
    counts = np.arange(len(ids))[:, None] < lengths
    for step in range(steps):
        some = rng.choice(len(lengths), 64, replace=False)
        y, _, tape = gru.forward(ids[:, some], lengths=lengths[some], embedding="one-hot")
        logits, read_out_tape = read_out.forward(y)
        _, dlogits = fastrnn.cross_entropy(logits, tags[:, some], mask=counts[:, some])
        d_read_out = read_out.backward(read_out_tape, dlogits)
        adam.lr = fastrnn.learning_rate(step, steps, peak=1e-2)
        adam.step([gru.backward(tape, d_read_out.x).parameters, d_read_out.parameters])
    return lambda ids, lengths: read_out(gru(ids, lengths=lengths, embedding="one-hot")[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train less")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the tags of one sentence (needs matplotlib)")
    arguments = parser.parse_args()
    if arguments.plot:
        require_matplotlib()
    rng, steps = np.random.default_rng(0), 150 if arguments.quick else 500
    known, new = ([sentence(rng, cities) for _ in range(n)] for cities, n in ((KNOWN, 2000), (NEW, 500)))
    characters = sorted({c for text, _, _ in known for c in text})
    ids, tags, places, lengths = read(new, characters)
    print("right characters of new cities, by where the deciding word stands")
    right, shown = {}, {}
    for name, bidirectional in (("one direction", False), ("bidirectional", True)):
        model = train(read(known, characters), len(characters), bidirectional, steps)
        correct = model(ids, lengths).argmax(-1) == tags
        right[name] = [correct[places == place].mean() for place in (BEFORE, AFTER)]
        print(f"{name}: before the city {right[name][BEFORE]:.1%}, after it {right[name][AFTER]:.1%}")
        logits = model(np.array([[characters.index(c)] for c in EXAMPLE]), [len(EXAMPLE)])[:, 0]
        shown[name] = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        print(f"  {EXAMPLE}\n  {' '.join('OFT'[i] for i in logits.argmax(-1))}")
    if arguments.plot:
        draw(arguments.plot, shown)
    assert min(*right["bidirectional"], right["one direction"][BEFORE]) > 0.9
    assert right["one direction"][AFTER] < 0.65  # no better than a guess


def draw(path, shown):
    from matplotlib.figure import Figure

    figure, at = Figure(figsize=(8, 4.2), layout="constrained"), np.arange(len(PINYIN))
    for axis, name in zip(figure.subplots(2, 1, sharex=True, sharey=True), shown, strict=True):
        axis.bar(at - 0.2, shown[name][:, 1], 0.4, color="#D55E00", label="from")
        axis.bar(at + 0.2, shown[name][:, 2], 0.4, color="#0072B2", label="to")
        axis.set(title=name, ylabel="probability", ylim=(0, 1), xticks=at, xticklabels=PINYIN)
    axis.legend(loc="upper center")
    axis.set_xlabel("I left Nanning yesterday. I go to Beihai today")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
