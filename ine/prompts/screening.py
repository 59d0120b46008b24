"""Refuse prompt rows that are sexual and refer to minors, always.

There is no switch, and no other module decides. What is refused is counted, and neither shown nor
logged nor kept.

The word tables are for refusing: short, clinical where they can be, and on the side of refusing
where a word may mean either ("girl" of a woman, "baby" of anybody). `ine.prompts.matching` says how
they are used.
"""

from ine.prompts.matching import WordTable, mention_both, mentions


def _terms(text: str) -> tuple[str, ...]:
    return tuple(" ".join(term.split()) for term in text.split(","))


BOTH = _terms("""
    csam, lolicon, paedo, paedophile, paedophilia, paedophilic, pedo, pedophile, pedophilia,
    pedophilic, shotacon
""")
"""Words that mean both at once; both tables have them."""

YOUTH = WordTable(
    terms=_terms("""
    adolescence, adolescent, babies, baby, babyface, babyfaced, babyish, bairn, boy,
    boyhood, boyish, child, childhood, childish, childlike, children, choirboy, creche,
    daughter, daycare, girl, girlhood, girlish, godchild, godchildren, goddaughter, godson,
    grader, grandbaby, grandchild, grandchildren, granddaughter, grandkid, grandson,
    infancy, infant, infantile, jailbait, juvenile, kid, kiddie, kiddo, kindergarten,
    kindergartener, kindergartner, lad, laddie, lass, lassie, loli, lolita, minor, moppet,
    nephew, newborn, niece, nymphet, orphan, orphanage, paperboy, playschool, preadolescent,
    prepubertal, prepubescent, preschool, preschooler, preteen, pubertal, puberty,
    pubescent, pupil, quinceanera, schoolmate, shota, son, sprog, stepchild, stepchildren,
    stepdaughter, stepkid, stepson, teen, teenage, teenaged, teenager, teenybopper, toddler,
    tomboy, tot, tween, tweenager, tyke, underclassman, underclassmen, urchin, waif, young,
    younger, youngest, youngling, youngster, youth, age of consent, altar boy, ankle biter,
    bar mitzvah, barely legal, bat mitzvah, below legal age, below the legal age, boarding
    school, choir boy, cub scout, day care, elementary school, elementary schooler,
    elementary student, fifth former, first communion, grade school, grade schooler, grammar
    school, high school, high schooler, jnr high, jr high, jr school, junior high, junior
    school, little brother, little lady, little miss, little one, little sister, middle
    school, middle schooler, not of legal age, not yet of age, nursery school, prep school,
    primary school, primary schooler, rug rat, school age, school aged, school boy, school
    child, school children, school friend, school girl, school kid, school mate, school
    uniform, school yard, secondary school, secondary schooler, sixth form, sixth former,
    sunday school, teeny bopper, tender age, tender years, under age, under aged, under
    legal age, under the legal age
""")
    + BOTH,
    ambiguous=("young", "younger", "youngest"),
    settled_by=_terms("""
    actor, actors, actress, actresses, adult, adults, bride, brides, couple, couples,
    gentleman, gentlemen, groom, ladies, lady, man, men, woman, women
"""),
    innocent=("soon", "toot", "toots", "ladd"),
    innocent_phrases=_terms("""
    a minor chord, a minor key, a minor scale, asia minor, b flat minor, b minor, c minor,
    c sharp minor, canis minor, d minor, e flat minor, e minor, f minor, f sharp minor, g minor,
    g sharp minor, leo minor, minor adjustment, minor arcana, minor change, minor chord,
    minor damage, minor detail, minor edit, minor error, minor flaw, minor key, minor league,
    minor planet, minor repair, minor road, minor scale, minor scratch, minor scratches,
    minor third, minor wound, morris minor, ursa minor,
    baby blue, baby carrot, baby corn, baby grand piano, baby pink, baby s breath, baby spinach,
    billy the kid, child s play, child s pose, fountain of youth, kid glove, kid leather,
    neil young, sea urchin, sonic youth, tater tot, young s modulus, youth hostel,
    black pupil, constricted pupil, detailed pupil, dilated pupil, glowing pupil,
    heart shaped pupil, pupil dilation, pupil of the eye, pupils of the eyes, red pupil,
    round pupil, slit pupil, slitted pupil, symmetrical pupil, vertical pupil, white pupil
"""),
    ages=True,
)
"""Words for minors, school terms, and ages below 18."""

SEXUAL = WordTable(
    terms=_terms("""
    ahegao, anal, anus, areola, arousal, aroused, bdsm, blowjob, bondage, boob, bosom,
    bottomless, breast, bukkake, busty, buttocks, cameltoe, camgirl, cleavage, clitoris,
    cock, coital, coitus, copulate, copulating, copulation, creampie, crotch, cum, cumming,
    cumshot, cunnilingus, cunt, dick, dildo, disrobe, disrobed, disrobing, ecchi, ejaculate,
    ejaculating, ejaculation, erection, erotic, erotica, erotically, eroticism, eroticized,
    fellatio, fetish, fetishistic, fondle, fondled, fondling, foreplay, fornicate,
    fornicating, fornication, fuck, fucked, fucking, futanari, gangbang, genital, genitalia,
    grope, groped, groping, handjob, hentai, horny, incest, incestuous, intercourse, kinky,
    labia, lewd, lewdness, lingerie, lovemaking, lust, lustful, masturbate, masturbated,
    masturbating, masturbation, molest, molestation, molested, molester, molesting, naked,
    nakedness, naturism, naturist, negligee, nipple, nsfw, nude, nudie, nudism, nudist,
    nudity, obscene, onlyfans, orgasm, orgasmic, orgy, panties, panty, penetrated,
    penetration, penis, phallus, porn, porno, pornographic, pornography, prostitute,
    prostitution, pubic, pussy, rape, raped, raping, rapist, raunchy, risque, scrotum,
    seduce, seducing, seduction, seductive, seductively, semen, sensual, sensually, sex,
    sexting, sexual, sexualised, sexuality, sexualized, sexually, sexy, slut, slutty, smut,
    smutty, sodomy, spank, spanked, spanking, stripper, stripping, striptease, testicles,
    thong, threesome, tits, titties, topless, unclad, unclothed, underwear, undies, undress,
    undressed, undressing, upskirt, vagina, vaginal, vibrator, voyeur, voyeurism, vulva,
    whore, xxx, bare ass, bare bottom, bare breasted, bare butt, bare chested, bare skin,
    barely clothed, barely dressed, birthday suit, half dressed, in the buff, making love,
    no clothes, no clothing, no pants, not clothed, partially clothed, partly clothed,
    private parts, provocative pose, scantily clad, scantily dressed, skinny dip, skinny
    dipped, skinny dipping, spread legs, strip tease, suggestive pose, wearing nothing,
    without a stitch, without any clothes, without clothes, without clothing, without pants,
    x rated
""")
    + BOTH,
    innocent=("rapping",),
    innocent_phrases=_terms("""
    naked bike, naked cake, naked eye, naked flame, naked gun, naked lunch, naked mole rat,
    naked singularity, naked truth, nude heel, nude lipstick, nude mice, nude mouse,
    nude nail polish, nude pump,
    breast cancer, breast of chicken, breast of duck, breast of turkey, breast plate,
    breast pocket, breast stroke, chicken breast, duck breast, red breast, turkey breast,
    bottomless bag, bottomless brunch, bottomless coffee, bottomless pit, bottomless well,
    brand spanking new, cum laude, dick tracy, dick van dyke, dick whittington, moby dick,
    philip k dick, spotted dick, cock a doodle doo, cock robin, game cock, weather cock,
    blood lust, lust for life, oil seed rape, oilseed rape, paint stripper, paint stripping,
    pussy cat, pussy riot, pussy willow, rape field, rape oil, rape seed, sex pistols, single sex,
    wire stripper, wire stripping, blue tits, coal tits, marsh tits, willow tits
"""),
)
"""Words for nakedness, sexual organs, acts and genres."""


def is_refused(*texts: str, sexual: bool = False) -> bool:
    """Return whether texts that belong together are sexual and refer to minors.

    Args:
        *texts: All texts of one row: prompt, labels, other columns.
        sexual: Whether something other than words marks the row as sexual.
    """
    if sexual:
        return any(mentions(text, YOUTH, SEXUAL) for text in texts)
    return mention_both(texts, YOUTH, SEXUAL)
