"""The word tables of the screening, as data; `ine.prompts.matching` says how they are used.

The lists are for refusing: short, clinical where they can be, and on the side of refusing where a
word may mean either ("girl" of a woman, "baby" of anybody).
"""

from ine.prompts.matching import Words


def _terms(text):
    return tuple(" ".join(term.split()) for term in text.split(","))


BOTH = _terms("""
    csam, lolicon, paedo, paedophile, paedophilia, paedophilic, pedo, pedophile, pedophilia,
    pedophilic, shotacon
""")
"""Words that say both at once; they stand in both tables."""

YOUTH = Words(
    terms=_terms("""
    adolescence, adolescent, baby, babies, boy, boyish, child, childlike, children,
    daughter, girl, girlish, infant, infantile, jailbait, juvenile, kid, kiddie, kiddo,
    kindergarten, kindergartener, kindergartner, lass, lassie, loli, lolita, minor, newborn,
    nymphet, preadolescent, prepubertal, prepubescent, preschool, preschooler, preteen,
    puberty, pubescent, shota, son, stepdaughter, stepson, teen, teenage, teenaged,
    teenager, toddler, tween, young, younger, youngest, youngster, youth, barely legal,
    elementary school, elementary schooler, grade school, grade schooler, grader, high
    school, high schooler, junior high, middle school, middle schooler, primary school,
    school age, school aged, school boy, school child, school children, school girl, school
    kid, school uniform, secondary school, under age, under aged
""")
    + BOTH,
    ambiguous=("young", "younger", "youngest"),
    settled_by=_terms("""
    actor, actors, actress, actresses, adult, adults, bride, brides, couple, couples,
    gentleman, gentlemen, groom, ladies, lady, man, men, woman, women
"""),
    innocent=("soon",),
    ages=True,
)
"""Who is meant: words for minors, school terms, and ages below 18."""

SEXUAL = Words(
    terms=_terms("""
    ahegao, anal, anus, arousal, aroused, bdsm, blowjob, bondage, boob, bottomless, breast,
    bukkake, buttocks, camgirl, cameltoe, clitoris, cock, coital, coitus, copulate,
    copulating, copulation, creampie, cum, cumming, cumshot, cunnilingus, cunt, dick, dildo,
    ecchi, ejaculate, ejaculating, ejaculation, erection, erotic, erotica, erotically,
    eroticism, eroticized, fellatio, fetish, fetishistic, fornicate, fornicating,
    fornication, fuck, fucked, fucking, futanari, gangbang, genital, genitalia, grope,
    groped, groping, handjob, hentai, horny, incest, incestuous, kinky, labia, lewd,
    lewdness, lingerie, lust, lustful, masturbate, masturbated, masturbating, masturbation,
    molest, molestation, molested, molester, molesting, naked, nakedness, nipple, nsfw,
    nude, nudism, nudist, nudity, onlyfans, orgasm, orgasmic, orgy, panties, panty,
    penetrated, penetration, penis, phallus, porn, porno, pornographic, pornography,
    prostitute, prostitution, pubic, pussy, rape, raped, raping, rapist, seduce, seducing,
    seduction, seductive, seductively, semen, sensual, sensually, sex, sexting, sexual,
    sexualised, sexuality, sexualized, sexually, sexy, slut, slutty, sodomy, stripper,
    stripping, striptease, testicles, thong, threesome, titties, tits, topless, unclad,
    unclothed, underwear, undies, undress, undressed, undressing, upskirt, vagina, vaginal,
    vibrator, vulva, whore, xxx, bare bottom, bare breasted, bare chested, bare skin,
    birthday suit, no clothes, no clothing, scantily clad, spread legs, strip tease, wearing
    nothing, without any clothes, without clothes, without clothing
""")
    + BOTH,
    innocent=("rapping",),
)
"""That it is sexual: nakedness, sexual organs, acts and genres."""
