"""Site names: what is understood, what it stands for, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay import Edit, Scale, Site
from inlay.errors import SiteError
from inlay.model.places import Place
from inlay.model.sitemap import SiteMap
from inlay.model.sites import GLOBAL, HEADED, LAYERED


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("resid_post.12", Site("resid_post", 12)),
        ("resid_post.-1", Site("resid_post", -1)),
        ("resid_post.*", Site("resid_post", every=True)),
        ("z.5.h3", Site("z", 5, (3,))),
        ("z.5.h[6,10]", Site("z", 5, (6, 10))),
        ("z.5.h[ 6, 10 ]", Site("z", 5, (6, 10))),
        ("z.5.h[3]", Site("z", 5, (3,))),
        ("q_rot.*.h1", Site("q_rot", None, (1,), every=True)),
        ("pattern.0.h[2,0,1]", Site("pattern", 0, (2, 0, 1))),
        ("embed", Site("embed")),
        ("final_norm", Site("final_norm")),
        ("logits", Site("logits")),
        ("module:model.layers.0.mlp:out", Site("module", path="model.layers.0.mlp", side="out")),
        ("module:lm_head:in", Site("module", path="lm_head", side="in")),
    ],
)
def test_a_site_is_read_from_text(text: str, site: Site) -> None:
    assert Site.parse(text) == site
    assert Site.parse(site) is site


layered = st.builds(
    Site,
    st.sampled_from(LAYERED),
    st.integers(-200, 200),
)
headed = st.builds(
    Site, st.sampled_from(HEADED), st.integers(-9, 99), st.lists(st.integers(0, 99), min_size=1, unique=True).map(tuple)
)
every_layer = st.builds(Site, st.sampled_from(LAYERED), every=st.just(True))
whole = st.builds(Site, st.sampled_from(GLOBAL))
raw = st.builds(
    Site,
    st.just("module"),
    path=st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+){0,4}", fullmatch=True),
    side=st.sampled_from(("in", "out")),
)


@given(st.one_of(layered, headed, every_layer, whole, raw))
def test_text_and_site_are_each_others_inverse(site: Site) -> None:
    assert Site.parse(str(site)) == site
    assert hash(Site.parse(str(site))) == hash(site)


def test_a_site_of_every_layer_at_one() -> None:
    assert str(Site.parse("z.*.h[1,2]").at(4)) == "z.4.h[1,2]"
    assert Site.parse("resid_post.*").at(0) == Site.parse("resid_post.0")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resid_pots.3", r"no Site is called 'resid_pots\.3'.*resid_post"),
        ("resid-post.3", "no Site is called"),
        ("Resid_post.3", "no Site is called"),
        ("residual.3", "no Site is called"),
        ("", "no Site is called ''"),
        ("z", r"'z' needs a layer: 'z\.0', or 'z\.\*'"),
        ("resid_post", r"needs a layer: 'resid_post\.0'"),
        ("z.h3", "needs a layer"),
        ("embed.0", "has no layers or heads; write 'embed'"),
        ("logits.*", "has no layers or heads"),
        ("logits.h1", "has no layers or heads"),
        ("attn_out.1.h0", "is not split into heads; these are: q, k, v, z"),
        ("mlp_act.1.h[0,1]", "is not split into heads"),
        ("resid_post.1.2", "no Site is called"),
        ("resid_post.one", "no Site is called"),
        ("resid_post.1:3", "no Site is called"),
        ("resid_post. 1", "no Site is called"),
        ("z.1.h", "no Site is called"),
        ("z.1.h-1", "no Site is called"),
        ("z.1.h*", "no Site is called"),
        ("z.1.3", "no Site is called"),
        ("z.1.h[]", "no Site is called"),
        ("z.1.h[,]", r"z\.1\.h\[,\]"),
        ("z.1.h[ ]", r"z\.1\.h\[ \]"),
        ("z.1.h[1 2]", r"z\.1\.h\[1 2\]"),
        ("z.1.h[1,,2]", r"z\.1\.h\[1,,2\]"),
        ("z.1.h[1,1]", r"z\.1\.h\[1,1\].*twice"),
        ("module:model.layers.0", "write 'module:<path>:out' or 'module:<path>:in'"),
        ("module:model.layers.0:output", "write 'module:<path>:out'"),
        ("module::out", "write 'module:<path>:out'"),
        ("resid_post.3\n", "no Site is called"),
    ],
)
def test_a_misspelled_site(text: str, says: str) -> None:
    with pytest.raises(SiteError, match=says):
        Site.parse(text)
    with pytest.raises(SiteError, match=says):
        Edit(text, Scale(0.5))


@pytest.mark.parametrize("text", [None, 3, ("resid_post", 3), b"resid_post.3"])
def test_a_site_that_is_not_text(text: object) -> None:
    with pytest.raises(SiteError, match=r"a Site is text such as 'resid_post\.3'"):
        Site.parse(text)  # type: ignore[arg-type]


# -- SiteMap ---------------------------------------------------------------------------------------------------------

MAP = SiteMap(
    places={
        "embed": {None: Place("e", "out", width=8)},
        "resid_post": {i: Place(f"b.{i}", "out", width=8) for i in range(3)},
        "z": {i: Place(f"b.{i}.o", "in", width=8, heads=4) for i in range(3)},
        "router": {1: Place("b.1.g", "out", width=4)},
    },
    lacks={"pattern": "it has no attention"},
    layers=3,
    family="toy",
)


@pytest.mark.parametrize(
    ("wanted", "expanded"),
    [
        ("resid_post.*", ["resid_post.0", "resid_post.1", "resid_post.2"]),
        ("router.*", ["router.1"]),
        ("resid_post.-1", ["resid_post.2"]),
        (["z.*.h1", "embed"], ["z.0.h1", "z.1.h1", "z.2.h1", "embed"]),
        (["resid_post.1", "resid_post.*"], ["resid_post.1", "resid_post.0", "resid_post.2"]),
        (["resid_post.2", "resid_post.-1"], ["resid_post.2"]),
        (Site("z", -3, (0, 2)), ["z.0.h[0,2]"]),
        ("module:any.path:out", ["module:any.path:out"]),
    ],
    ids=str,
)
def test_a_map_expands_what_is_asked_for(wanted: object, expanded: list[str]) -> None:
    assert [str(site) for site in MAP.expand(wanted)] == expanded  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("resid_post.3", "resid_post.3: layer 3 is out of range; toy has layers 0 to 2"),
        ("resid_post.-4", "layer -4 is out of range; toy has layers 0 to 2"),
        ("router.0", r"router\.0: layer 0 of toy has no 'router'; these layers have one: 1"),
        ("router.-1", r"layer 2 of toy has no 'router'; these layers have one: 1"),
        ("pattern.0", r"toy has no Site 'pattern' \(it has no attention\)\. It has: embed, resid_post, z, router"),
        ("pattern.*", r"toy has no Site 'pattern'"),
        ("logits", r"toy has no Site 'logits'"),
        ("z.0.h4", r"'z\.0\.h4': head 4 is out of range; the Site has 4 heads"),
        ("z.*.h[0,5]", "head 5 is out of range"),
        ([], "no Site was asked for"),
    ],
    ids=str,
)
def test_a_map_refuses_what_is_not_there(wanted: object, says: str) -> None:
    with pytest.raises(SiteError, match=says):
        MAP.expand(wanted)  # type: ignore[arg-type]
