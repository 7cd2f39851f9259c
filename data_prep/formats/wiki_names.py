"""Names that wikis know without saying so in a dump: MediaWiki's own, by language. To extend: another word, or a line.

They are read in the dumps of every wiki: a small wiki often takes over its neighbour's, and many an export is made under
another wiki's head. Written as in MediaWiki's languages/messages, where a blank stands for the underscore.
"""

_MEDIA = """
en: Media, File, Image, Category
af: Lêer, Beeld, Kategorie
als: Datei, Bild, Kategorie
am: ፋይል, ስዕል, መደብ
an: Fichero, Imachen, Categoría
ar: وسائط, ملف, صورة, تصنيف
arz: ميديا, ملف, صوره, تصنيف
as: চিত্ৰ, শ্ৰেণী
ast: Medios, Ficheru, Archivu, Imaxen, Categoría
az: Fayl, Şəkil, Kateqoriya
azb: فایل, شکیل, بؤلمه
ba: Файл, Рәсем, Категория
bar: Datei, Kategorie
be: Медыя, Мультымедыя, Файл, Выява, Катэгорыя
bg: Медия, Файл, Картинка, Категория
bn: মিডিয়া, চিত্র, ফাইল, বিষয়শ্রেণী
br: Restr, Skeudenn, Rummad
bs: Medija, Datoteka, Slika, Kategorija
ca: Fitxer, Imatge, Categoria
ce: Файл, Хlум, Категори
ceb: Payl, Kategoriya
ckb: میدیا, پەڕگە, وێنە, پۆل
cs: Média, Soubor, Obrázek, Kategorie
cv: Ӳкерчĕк, Категори
cy: Cyfrwng, Delwedd, Categori
da: Medie, Fil, Billede, Kategori
de: Medium, Datei, Bild, Kategorie
diq: Medya, Dosya, Kategoriye
el: Μέσο, Αρχείο, Εικόνα, Κατηγορία
eo: Aŭdvidaĵo, Dosiero, Kategorio
es: Medio, Archivo, Imagen, Categoría
et: Meedia, Pilt, Fail, Kategooria
eu: Fitxategi, Irudi, Kategoria
fa: مدیا, رسانه, پرونده, تصویر, رده
fi: Tiedosto, Kuva, Luokka
fo: Miðil, Mynd, Bólkur
fr: Média, Fichier, Image, Catégorie
fy: Ofbyld, Triem, Kategory
ga: Meán, Íomhá, Catagóir
gd: Faidhle, Roinn-seòrsa
gl: Ficheiro, Imaxe, Categoría
gu: દ્રશ્ય-શ્રાવ્ય, ચિત્ર, શ્રેણી
he: מדיה, קובץ, תמונה, קטגוריה
hi: मीडिया, चित्र, फ़ाइल, श्रेणी
hr: Mediji, Medij, Datoteka, Slika, Kategorija
ht: Fichye, Imaj, Kategori
hu: Média, Fájl, Kép, Kategória
hy: Մեդիա, Պատկեր, Կատեգորիա
ia: Multimedia, File, Imagine, Categoria
id: Media, Berkas, Gambar, Kategori
ilo: Papeles, Ladawan, Kategoria
io: Arkivo, Imajo, Kategorio
is: Miðill, Mynd, Flokkur
it: Immagine, Categoria
ja: メディア, ファイル, 画像, カテゴリ
jv: Médhia, Berkas, Gambar, Kategori
ka: მედია, ფაილი, სურათი, კატეგორია
kk: Таспа, Сурет, Санат, Taspa, Swret, Sanat
km: មេឌា, ឯកសារ, រូបភាព, ចំណាត់ថ្នាក់ក្រុម
kn: ಮೀಡಿಯ, ಚಿತ್ರ, ವರ್ಗ
ko: 미디어, 파일, 그림, 분류
ku: Medya, Wêne, Kategorî
ky: Медиа, Файл, Сүрөт, Категория
la: Fasciculus, Imago, Categoria
lb: Fichier, Bild, Kategorie
li: Plaetje, Aafbeilding, Categorie
lmo: Archivi, Imagen, Categuria
lt: Medija, Vaizdas, Kategorija
lv: Attēls, Kategorija
mg: Sary, Rakitra, Sokajy
mk: Медиум, Медија, Податотека, Слика, Категорија
ml: മീഡിയ, പ്രമാണം, ചിത്രം, വർഗ്ഗം, വിഭാഗം
mn: Файл, Зураг, Ангилал
mr: मिडिया, चित्र, वर्ग
ms: Fail, Imej, Kategori
my: ဖိုင်, ကဏ္ဍ
mzn: رسانه, پرونده, رج
nap: Fiùra, Categurìa
nds: Datei, Bild, Kategorie
ne: मीडिया, चित्र, श्रेणी
new: किपा, पुचः
nl: Bestand, Afbeelding, Categorie
nn: Filpeikar, Fil, Bilde, Kategori
no: Medium, Fil, Bilde, Kategori
oc: Mèdia, Fichièr, Imatge, Categoria
or: ମାଧ୍ୟମ, ଫାଇଲ, ଶ୍ରେଣୀ
pa: ਮੀਡੀਆ, ਤਸਵੀਰ, ਫ਼ਾਈਲ, ਸ਼੍ਰੇਣੀ
pl: Plik, Grafika, Kategoria
pms: Figura, Categorìa
pnb: میڈیا, فائل, مورت, گٹھ
ps: رسنۍ, دوتنه, انځور, وېشنيزه
pt: Multimédia, Multimídia, Ficheiro, Imagem, Arquivo, Categoria
qu: Midya, Rikcha, Katiguriya
ro: Fișier, Fişier, Imagine, Categorie
ru: Медиа, Файл, Изображение, Категория
sa: माध्यमम्, सञ्चिका, चित्रम्, वर्गः
sah: Миэдьийэ, Билэ, Ойуу, Категория
scn: Mmàggini, Immaggini, Catigurìa
sd: زمرو, ذريعات, عڪس
sh: Medija, Datoteka, Slika, Kategorija, Медија, Датотека, Слика, Категорија
si: මාධ්‍යය, ගොනුව, රූපය, ප්‍රවර්ගය
sk: Médiá, Súbor, Obrázok, Kategória
sl: Datoteka, Slika, Kategorija
sq: Skeda, Figura, Kategoria
sr: Медиј, Медија, Датотека, Слика, Категорија, Medij, Medija, Datoteka, Slika, Kategorija
su: Média, Gambar, Kategori
sv: Fil, Bild, Kategori
sw: Faili, Picha, Jamii
szl: Plik, Kategoryjo
ta: ஊடகம், படிமம், பகுப்பு
te: మీడియా, దస్త్రం, బొమ్మ, ఫైలు, వర్గం
tg: Акс, Гурӯҳ
th: สื่อ, ไฟล์, ภาพ, หมวดหมู่
tl: Midya, Talaksan, Larawan, Kategorya, Kaurian
tr: Ortam, Dosya, Resim, Kategori
tt: Медиа, Файл, Рәсем, Төркем
uk: Медіа, Файл, Зображення, Категорія
ur: میڈیا, وسیط, ملف, تصویر, فائل, زمرہ
uz: Media, Fayl, Tasvir, Turkum
vec: Imàjine, Imagine, Categoria
vi: Phương tiện, Tập tin, Hình, Thể loại
vo: Ragiv, Magod, Klad
wa: Imådje, Categoreye
war: Paypay, Fayl, Kaarangay
yi: מעדיע, טעקע, בילד, קאַטעגאָריע, קאטעגאריע, קאַטעגאריע
yo: Amóhùnmáwòrán, Fáìlì, Ẹ̀ka
zh: 媒体, 媒體, 媒体文件, 媒體檔案, 文件, 档案, 檔案, 图像, 圖像, 圖片, 图片, 影像, 分类, 分類
zh-yue: 文件, 檔, 档, 文檔, 類, 类, 分類
"""

_REDIRECTS = """
en: REDIRECT
af: AANSTUUR
ar: تحويل
arz: تحويل
ast: REDIRECCIÓN, REDIREICIÓN
az: İSTİQAMƏTLƏNDİRMƏ, YÖNLƏNDİRMƏ
ba: ПЕРЕНАПРАВЛЕНИЕ, ЙҮНӘЛТЕҮ
be: ПЕРАНАКІРАВАННЕ, ПЕРАНАКІРАВАНЬНЕ
bg: ПРЕНАСОЧВАНЕ, ВИЖ
bn: পুনর্নির্দেশ, পুননির্দেশ
br: ADKAS
bs: PREUSMJERI
ca: REDIRECCIÓ, REDIRECT
cs: PŘESMĚRUJ
cy: AIL-CYFEIRIO, AILGYFEIRIO
da: OMDIRIGERING
de: WEITERLEITUNG
el: ΑΝΑΚΑΤΕΥΘΥΝΣΗ
eo: ALIDIREKTU, ALIDIREKTO
es: REDIRECCIÓN, REDIRECCION
et: suuna
eu: BIRZUZENDU
fa: تغییر_مسیر, تغییرمسیر
fi: OHJAUS, UUDELLEENOHJAUS
fr: REDIRECTION
ga: ATHSHEOLADH
gl: REDIRECCIÓN
he: הפניה
hi: अनुप्रेषित, पुनर्प्रेषित
hr: PREUSMJERI
hu: ÁTIRÁNYÍTÁS
hy: ՎԵՐԱՀՂՈՒՄ
id: ALIH
is: tilvísun, TILVÍSUN
it: RINVIA, RINVIO
ja: 転送, リダイレクト
ka: გადამისამართება
kk: АЙДАУ, AÝDAW
km: បញ្ជូនបន្ត, ប្ដូរទីតាំងទៅ
ko: 넘겨주기
ku: BERALÎKIRIN
lt: PERADRESAVIMAS
mk: ПРЕНАСОЧУВАЊЕ, Види
ml: തിരിച്ചുവിടുക, തിരിച്ചുവിടൽ
mr: पुनर्निर्देशन
ms: LENCONG
nds: wiederleiden
nl: DOORVERWIJZING
nn: OMDIRIGER
no: OMDIRIGERING
oc: REDIRECCION
pl: PATRZ, PRZEKIERUJ, TAM
pt: REDIRECIONAMENTO, REDIRECIONA
qu: PUSAPUNA
ro: REDIRECTEAZA
ru: ПЕРЕНАПРАВЛЕНИЕ, ПЕРЕНАПР
sah: УТААРЫЫ
sk: PRESMERUJ
sl: PREUSMERITEV
sq: RIDREJTO
sr: Преусмери, преусмери, ПРЕУСМЕРИ, redirekcija
sv: OMDIRIGERING
ta: வழிமாற்று
te: దారిమార్పు
th: เปลี่ยนทาง
tr: YÖNLENDİRME, YÖNLENDİR, yönlendirme, yönlendir
tt: ЮНӘЛТҮ
uk: ПЕРЕНАПРАВЛЕННЯ, ПЕРЕНАПР
ur: رجوع_مکرر
uz: YOʻNALTIRISH
vi: đổi, ĐỔI
yi: ווייטערפירן
zh: 重定向, 重新導向
"""


def _names(lines: str) -> frozenset[str]:
    """The names of all lines, in lower case."""
    rows = (line.partition(":")[2] for line in lines.strip().splitlines())
    return frozenset(name.strip().lower() for row in rows for name in row.split(","))


MEDIA_NAMES = _names(_MEDIA)  # of the namespaces Media, File (once Image) and Category
REDIRECT_WORDS = frozenset(word.casefold() for word in _names(_REDIRECTS))  # that follow a "#"
# Of the other namespaces, in English: every wiki understands these next to its own.
CANONICAL_NAMES = frozenset(
    name + talk
    for name in ("user", "project", "file", "image", "mediawiki", "template", "help", "category")
    for talk in ("", " talk")
) | {"media", "special", "talk"}
# Of namespaces that Wikipedias add, in English, for exports that do not list theirs.
WIKIPEDIA_NAMES = frozenset(
    name + talk for name in ("wikipedia", "portal", "book", "draft", "module", "timedtext") for talk in ("", " talk")
)
