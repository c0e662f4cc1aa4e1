"""The fonts of the rendered text: families of Debian's packages, each in one part of the data.

A family stands in exactly one of train, validation and test, and so does a design under several names (Carlito is cut
from Lato; FreeSans and Liberation Sans both follow Helvetica). docs/fonts.md lists the packages with their licences; no
font is part of this project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from training.errors import DataError

__all__ = ["FAMILIES", "SCRIPTS", "Family", "Part", "Script", "find_fonts", "packages"]

Script = Literal["latin", "greek", "cyrillic", "hebrew", "arabic", "devanagari", "han", "japanese"]
Part = Literal["train", "validation", "test"]

SCRIPTS: tuple[Script, ...] = get_args(Script)

LGC: tuple[Script, ...] = ("latin", "greek", "cyrillic")
LC: tuple[Script, ...] = ("latin", "cyrillic")
LG: tuple[Script, ...] = ("latin", "greek")
L: tuple[Script, ...] = ("latin",)


@dataclass(frozen=True)
class Family:
    """One typeface: `files` are patterns of file names, `scripts` those that its files really draw."""

    name: str
    package: str
    part: Part
    scripts: tuple[Script, ...]
    files: tuple[str, ...]


FAMILIES: tuple[Family, ...] = (
    Family(
        "DejaVu Sans",
        "fonts-dejavu-core",
        "train",
        (*LGC, "hebrew", "arabic"),
        ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    ),
    Family("DejaVu Serif", "fonts-dejavu-core", "train", LGC, ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf")),
    Family("DejaVu Sans Mono", "fonts-dejavu-core", "train", LGC, ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf")),
    Family("Liberation Serif", "fonts-liberation2", "train", (*LGC, "hebrew"), ("LiberationSerif-*.ttf",)),
    Family("Liberation Mono", "fonts-liberation2", "train", LGC, ("LiberationMono-*.ttf",)),
    Family("Lato", "fonts-lato", "train", LGC, ("Lato-[BHLMRS]*.ttf", "Lato-Italic.ttf")),
    Family("Carlito", "fonts-crosextra-carlito", "train", LGC, ("Carlito-*.ttf",)),
    Family("Roboto", "fonts-roboto-unhinted", "train", LGC, ("Roboto-*.ttf", "RobotoCondensed-*.ttf")),
    Family("Roboto Slab", "fonts-roboto-slab", "train", LGC, ("RobotoSlab-*.otf",)),
    Family(
        "Linux Libertine",
        "fonts-linuxlibertine",
        "train",
        (*LGC, "hebrew"),
        ("LinLibertine_R.otf", "LinLibertine_RB.otf", "LinLibertine_RI.otf"),
    ),
    Family("Linux Biolinum", "fonts-linuxlibertine", "train", LGC, ("LinBiolinum_R*.otf",)),
    Family("CMU Serif", "fonts-cmu", "train", LGC, ("cmunrm.ttf", "cmunbx.ttf", "cmunti.ttf", "cmunbi.ttf")),
    Family("CMU Sans Serif", "fonts-cmu", "train", LGC, ("cmunss.ttf", "cmunsx.ttf", "cmunsi.ttf")),
    Family("CMU Typewriter", "fonts-cmu", "train", LGC, ("cmuntt.ttf", "cmuntb.ttf", "cmunit.ttf")),
    Family("PT Serif", "fonts-paratype", "train", LC, ("PTF*.ttf", "PTZ*.ttf")),
    Family("PT Sans", "fonts-paratype", "train", LC, ("PTS*.ttf", "PTN*.ttf", "PTC*.ttf")),
    Family("Gentium Basic", "fonts-sil-gentium-basic", "train", L, ("GenBas*.ttf", "GenBkBas*.ttf")),
    Family("Charis SIL", "fonts-sil-charis", "train", LC, ("CharisSIL-*.ttf",)),
    Family("Comic Neue", "fonts-comic-neue", "train", L, ("ComicNeue-*.otf",)),
    Family("Courier Prime", "fonts-courier-prime", "train", L, ("Courier Prime*.otf",)),
    Family("Inconsolata", "fonts-inconsolata", "train", L, ("Inconsolata.otf",)),
    Family("Fira Code", "fonts-firacode", "train", LGC, ("FiraCode-*.ttf",)),
    Family("GFS Artemisia", "fonts-gfs-artemisia", "train", LG, ("GFSArtemisia*.otf",)),
    Family("GFS Neohellenic", "fonts-gfs-neohellenic", "train", LG, ("GFSNeohellenic*.otf",)),
    Family("Play", "fonts-play", "train", LGC, ("Play-*.ttf",)),
    Family("Quicksand", "fonts-quicksand", "train", L, ("Quicksand-*.ttf",)),
    Family("Yanone Kaffeesatz", "fonts-yanone-kaffeesatz", "train", L, ("YanoneKaffeesatz-*.otf",)),
    Family("Tribun ADF", "fonts-adf-tribun", "train", L, ("TribunADFStd-*.otf",)),
    Family("Gillius ADF", "fonts-adf-gillius", "train", L, ("GilliusADF*.otf",)),
    Family("FreeSerif", "fonts-freefont-ttf", "train", (*LGC, "hebrew"), ("FreeSerif*.ttf",)),
    Family("FreeMono", "fonts-freefont-ttf", "train", (*LGC, "hebrew"), ("FreeMono*.ttf",)),
    Family("Averia Sans", "fonts-averia-sans-gwf", "train", L, ("AveriaSansGWF-*.ttf",)),
    Family("Averia Serif", "fonts-averia-serif-gwf", "train", L, ("AveriaSerifGWF-*.ttf",)),
    Family("Cabin", "fonts-cabin", "train", L, ("Cabin-*.otf",)),
    Family("Comfortaa", "fonts-comfortaa", "train", LGC, ("Comfortaa-*.ttf",)),
    Family("Dosis", "fonts-dosis", "train", L, ("Dosis-*.otf",)),
    Family("Dustismo", "fonts-dustin", "train", L, ("*ustismo*.ttf",)),
    Family("Fantasque Sans Mono", "fonts-fantasque-sans", "train", LGC, ("FantasqueSansMono-*.otf",)),
    Family("Jura", "fonts-jura", "train", LGC, ("Jura-*.otf",)),
    Family("monofur", "fonts-monofur", "train", L, ("monof5*.ttf",)),
    Family("mononoki", "fonts-mononoki", "train", LGC, ("mononoki-*.ttf",)),
    Family("Lobster Two", "fonts-lobstertwo", "train", L, ("LobsterTwo-*.otf",)),
    Family("Kaushan Script", "fonts-kaushanscript", "train", L, ("KaushanScript-Regular.otf",)),
    Family("Rufscript", "fonts-rufscript", "train", L, ("Rufscript010.ttf",)),
    Family("Ecolier", "fonts-ecolier-court", "train", L, ("Ecolier-court.ttf",)),
    Family("Breip", "fonts-breip", "train", L, ("Breip.ttf",)),
    Family("SteveHand", "fonts-sjfonts", "train", L, ("SteveHand.ttf", "Delphine.ttf")),
    Family("Humor Sans", "fonts-humor-sans", "train", L, ("Humor-Sans.ttf",)),
    Family("Tomson Talks", "fonts-tomsontalks", "train", L, ("TomsonTalks.ttf",)),
    Family("femkeklaver", "fonts-femkeklaver", "train", L, ("femkeklaver.ttf",)),
    Family("Isabella", "fonts-isabella", "train", L, ("Isabella.ttf",)),
    Family("GFS Baskerville", "fonts-gfs-baskerville", "train", ("greek",), ("GFSBaskerville.otf",)),
    Family("GFS Bodoni Classic", "fonts-gfs-bodoni-classic", "train", ("greek",), ("GFSBodoniClassic.otf",)),
    Family("GFS Olga", "fonts-gfs-olga", "train", ("greek",), ("GFSOlga.otf",)),
    Family("GFS Porson", "fonts-gfs-porson", "train", ("greek",), ("GFSPorson.otf",)),
    Family("GFS Solomos", "fonts-gfs-solomos", "train", ("greek",), ("GFSSolomos.otf",)),
    Family("GFS Theokritos", "fonts-gfs-theokritos", "train", ("greek",), ("GFSTheokritos.otf",)),
    Family("FreeFarsi", "fonts-freefarsi", "train", ("arabic",), ("FreeFarsi*.ttf",)),
    Family("Thabit", "fonts-hosny-thabit", "train", ("arabic",), ("Thabit*.ttf",)),
    Family("SetoFont", "fonts-seto", "train", ("japanese",), ("setofont.ttf",)),
    Family("Open Sans", "fonts-open-sans", "validation", LGC, ("OpenSans-*.ttf",)),
    Family("Old Standard", "fonts-oldstandard", "validation", LGC, ("OldStandard-*.otf", "OldStandard-*.ttf")),
    Family("JetBrains Mono", "fonts-jetbrains-mono", "validation", LGC, ("JetBrainsMono-*.ttf",)),
    Family("Caladea", "fonts-crosextra-caladea", "validation", L, ("Caladea-*.ttf",)),
    Family("DkgHandwriting", "fonts-dkg-handwriting", "validation", L, ("dkg*.ttf",)),
    Family("Liberation Sans", "fonts-liberation2", "test", LGC, ("LiberationSans-*.ttf",)),
    Family("FreeSans", "fonts-freefont-ttf", "test", (*LGC, "hebrew"), ("FreeSans*.ttf",)),
    Family("Cantarell", "fonts-cantarell", "test", LC, ("Cantarell-[BELR]*.otf",)),
    Family("EB Garamond", "fonts-ebgaramond", "test", LGC, ("EBGaramond12-Regular.otf", "EBGaramond12-Italic.otf")),
    Family("Vollkorn", "fonts-vollkorn", "test", LGC, ("Vollkorn-*.ttf",)),
    Family("Andika", "fonts-sil-andika-compact", "test", LC, ("AndikaCompact-R.ttf",)),
    Family("Anonymous Pro", "fonts-anonymous-pro", "test", LGC, ("Anonymous Pro*.ttf",)),
    Family("GFS Didot", "fonts-gfs-didot", "test", LG, ("GFSDidot*.otf",)),
    Family("Libris ADF", "fonts-adf-libris", "test", L, ("LibrisADFStd-*.otf",)),
    Family("Dancing Script", "fonts-dancingscript", "test", L, ("DancingScript-*.otf",)),
    Family("Frank Ruehl CLM", "culmus", "train", ("hebrew",), ("FrankRuehlCLM-*.ttf",)),
    Family("Hadasim CLM", "culmus", "train", ("hebrew",), ("HadasimCLM-*.ttf",)),
    Family("Keter YG", "culmus", "train", ("hebrew",), ("KeterYG-*.ttf",)),
    Family("Simple CLM", "culmus", "train", ("hebrew",), ("SimpleCLM-*.ttf",)),
    Family("Miriam Mono CLM", "culmus", "train", ("hebrew",), ("MiriamMonoCLM-*.ttf",)),
    Family("Miriam CLM", "culmus", "train", ("hebrew",), ("MiriamCLM-*.ttf",)),
    Family("Ellinia CLM", "culmus", "train", ("hebrew",), ("ElliniaCLM-*.pfa",)),
    Family("Yehuda CLM", "culmus", "train", ("hebrew",), ("YehudaCLM-*.pfa",)),
    Family("Drugulin CLM", "culmus", "train", ("hebrew",), ("DrugulinCLM-*.pfa",)),
    Family("Aharoni CLM", "culmus", "validation", ("hebrew",), ("AharoniCLM-*.pfa",)),
    Family("Shofar", "culmus", "validation", ("hebrew",), ("Shofar*.ttf",)),
    Family("Nachlieli CLM", "culmus", "test", ("hebrew",), ("NachlieliCLM-*.otf",)),
    Family("David CLM", "culmus", "test", ("hebrew",), ("DavidCLM-*.otf",)),
    Family("Amiri", "fonts-hosny-amiri", "train", ("arabic",), ("Amiri-*.ttf",)),
    Family("KACST", "fonts-kacst", "train", ("arabic",), ("Kacst*.ttf",)),
    Family("Nazli", "fonts-farsiweb", "train", ("arabic",), ("nazli*.ttf",)),
    Family("Lateef", "fonts-sil-lateef", "train", ("arabic",), ("Lateef-*.ttf",)),
    Family("Homa", "fonts-farsiweb", "validation", ("arabic",), ("homa.ttf",)),
    Family("Harmattan", "fonts-sil-harmattan", "validation", ("arabic",), ("Harmattan-*.ttf",)),
    Family("Scheherazade", "fonts-sil-scheherazade", "test", ("arabic",), ("Scheherazade-*.ttf",)),
    Family("Titr", "fonts-farsiweb", "test", ("arabic",), ("titr.ttf",)),
    Family("Lohit Devanagari", "fonts-lohit-deva", "train", ("devanagari",), ("Lohit-Devanagari.ttf",)),
    Family("Samyak Devanagari", "fonts-samyak-deva", "train", ("devanagari",), ("Samyak-Devanagari.ttf",)),
    Family("Annapurna SIL", "fonts-sil-annapurna", "train", ("devanagari",), ("AnnapurnaSIL-*.ttf",)),
    Family("Gargi", "fonts-gargi", "validation", ("devanagari",), ("Gargi.ttf",)),
    Family("Nakula", "fonts-nakula", "test", ("devanagari",), ("nakula.ttf",)),
    Family("WenQuanYi Micro Hei", "fonts-wqy-microhei", "train", ("han",), ("wqy-microhei.ttc",)),
    Family("AR PL SungtiL GB", "fonts-arphic-gbsn00lp", "train", ("han",), ("gbsn00lp.ttf",)),
    Family("WenQuanYi Zen Hei", "fonts-wqy-zenhei", "validation", ("han",), ("wqy-zenhei.ttc",)),
    Family("AR PL KaitiM GB", "fonts-arphic-gkai00mp", "test", ("han",), ("gkai00mp.ttf",)),
    Family("IPA Mincho", "fonts-ipafont-mincho", "train", ("japanese",), ("ipam.ttf", "ipamp.ttf")),
    Family("VL Gothic", "fonts-vlgothic", "train", ("japanese",), ("VL-Gothic-Regular.ttf", "VL-PGothic-Regular.ttf")),
    Family("Sawarabi Mincho", "fonts-sawarabi-mincho", "validation", ("japanese",), ("sawarabi-mincho-medium.ttf",)),
    Family("IPA Gothic", "fonts-ipafont-gothic", "test", ("japanese",), ("ipag.ttf", "ipagp.ttf")),
)


def packages(families: Sequence[Family] = FAMILIES) -> tuple[str, ...]:
    """The Debian packages of some families, sorted."""
    return tuple(sorted({family.package for family in families}))


def find_fonts(folder: Path, part: Part, scripts: Sequence[Script]) -> dict[Script, dict[str, tuple[Path, ...]]]:
    """The font files of one part of the data: script -> family -> files, all in a fixed order.

    Args:
        folder: searched in any depth, `/usr/share/fonts` on Debian.

    Raises:
        DataError: a family's files are not there; the message names the packages to install.
    """
    present = {path.name: path for path in sorted(folder.rglob("*"), reverse=True)} if folder.is_dir() else {}
    wanted = [family for family in FAMILIES if family.part == part and set(family.scripts) & set(scripts)]
    found: dict[Script, dict[str, tuple[Path, ...]]] = {script: {} for script in scripts}
    missing = []
    for family in wanted:
        names = sorted({name for name in present for pattern in family.files if Path(name).match(pattern)})
        if not names:
            missing.append(family)
        for script in (script for script in family.scripts if script in found):
            found[script][family.name] = tuple(present[name] for name in names)
    if missing:
        raise DataError(
            f"text: {folder} lacks the fonts {', '.join(family.name for family in missing[:3])}"
            f"{' and others' if len(missing) > 3 else ''}; on Debian: apt-get install {' '.join(packages(missing))}"
        )
    return found
