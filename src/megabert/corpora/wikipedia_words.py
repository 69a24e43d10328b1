"""Words of wikis: which links are files, which templates and tags hold text.

A dump's own table of namespaces gives one name for each; the aliases that pages use beside it are not in a dump.
"""

from __future__ import annotations

# Aliases of the namespaces File and Media that MediaWiki's languages use, in lower case.
FILE_WORDS = frozenset(
    """
    file image media archivo imagen medio fichier média datei bild medium immagine bestand afbeelding plik grafika
    ficheiro arquivo imagem multimédia файл изображение медиа картинка медия зображення изображения датотека слика
    fil billede billed mynd tiedosto kuva fájl kép média soubor súbor obrázok fișier fişier imagine dosya resim ortam
    αρχείο εικόνα ملف صورة وسائط קובץ תמונה پرونده تصویر ファイル 画像 文件 檔案 圖像 图像 圖片 图片 파일 그림 tập_tin
    hình berkas gambar gambaran fitxer imatge fitxategi irudi attēls fails vaizdas failas fail pilt slika datoteka
    датотека skrá ficheru imaxe imaxen dosiero gambar ไฟล์ ภาพ चित्र छवि চিত্র படிமம் దస్త్రం ചിത്രം ფაილი სურათი
    պատկեր fayl şəkil сурет файлы delwedd íomhá restr skeudenn imago fasciculus
    """.split()
)
CATEGORY_WORDS = frozenset(
    """
    category categoría catégorie kategorie categoria categorie kategoria категория категорія катэгорыя категорија
    kategori kategória kategorija kategoriya luokka flokkur κατηγορία تصنيف קטגוריה رده カテゴリ 分类 分類 분류
    thể_loại kategoria kategorio kategoriija kateguoreja kateguorija หมวดหมู่ श्रेणी বিষয়শ্রেণী
    """.split()
)
# Prefixes of other projects: their links are text in the page. Other two- and three-letter prefixes are languages.
PROJECT_PREFIXES = frozenset({"mw", "doi", "wmf", "rfc", "wp", "wt", "hdl"})
LONG_LANGUAGES = frozenset({"simple", "tokipona", "nostalgia", "be-x-old", "map-bms", "cbk-zam", "bat-smg", "roa-rup"})
MEDIA_ENDING = (
    ".jpg", ".jpeg", ".png", ".svg", ".gif", ".tif", ".tiff", ".webp", ".ogg", ".oga", ".ogv", ".webm", ".wav", ".mp3",
    ".mid", ".pdf", ".djvu", ".xcf", ".flac", ".opus", ".bmp", ".stl",
)  # fmt: skip

# Their content is no running text.
DROPPED_TAGS = frozenset(
    """
    ref references math chem ce gallery imagemap timeline table score hiero graph mapframe maplink templatedata
    templatestyles inputbox syntaxhighlight source categorytree section indicator listing rss img
    style script dynamicpagelist charinsert randomimage includeonly phonos video
    audio svg canvas iframe object embed form input select textarea caption tr td th
    """.split()
)
LINE_TAGS = frozenset(
    "br p div blockquote center poem h1 h2 h3 h4 h5 h6 ul ol li dl dd dt hr pre section article aside quote".split()
)
KNOWN_TAGS = DROPPED_TAGS | LINE_TAGS | frozenset(
    """
    b i u s em strong small big sub sup span font tt code kbd var samp abbr acronym cite dfn del ins strike q ruby rb
    rt rp rtc bdi bdo mark nowiki onlyinclude noinclude time data wbr a dl translate tvar languages tbody thead tfoot
    colgroup col lang address details summary blink
    """.split()
)  # fmt: skip
