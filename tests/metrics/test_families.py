from g2l_plugin.metrics import cka, few_shot, knn, plism, probe, robustness
from g2l_plugin.metrics.families import FAMILIES, family_of, k_of


def test_a_name_belongs_to_the_family_whose_pattern_matches_all_of_it():
    assert family_of("KNNAccuracy") is knn.KNN
    assert family_of("LinearCKAUnbiased") is cka.CKA
    assert family_of("LinearCKA") is cka.BIASED_CKA
    assert family_of("KNNBalancedAccuracy") is None
    assert family_of("FewShotBalancedAccuracy/k=5") is few_shot.FEW_SHOT
    assert family_of("LogisticECE") is probe.CALIBRATION
    assert family_of("LogisticAUROC") is probe.LOGISTIC
    assert family_of("RobustnessIndex/k=20") is robustness.ROBUSTNESS
    assert family_of("PathoROBIndex/k=20") is robustness.PATHOROB
    published = family_of("PublishedPathoROBIndex/k=61")
    assert published.title == "Robustness index (PathoROB, as published)"
    for name in ("AveragePerformanceDrop/OOD", "ClusteringScore", "ClusteringScore/trials=5"):
        assert "as published" in family_of(name).title
    assert family_of("Top10Accuracy/scanner") is plism.RETRIEVAL
    assert len({family.key for family in FAMILIES}) == len(FAMILIES)


def test_the_number_of_neighbours_is_read_from_the_name():
    assert k_of("RobustnessIndex/k=20") == 20
    assert k_of("Top10Accuracy/all") == 10
    assert k_of("KNNAccuracy") is None
    assert k_of("CosineSimilarity/all") is None
